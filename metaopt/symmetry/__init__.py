"""Symmetries: sites in a network, groups that act there, orbits, and searches along them."""

from metaopt.symmetry.action import Action, Moved
from metaopt.symmetry.actions import (
    ACTIONS,
    LinearAction,
    PostActivationAction,
    PreActivationAction,
    RescalingAction,
    make_action,
)
from metaopt.symmetry.activations import Activation, Elementwise, Identity, LeakyReLU
from metaopt.symmetry.balancing import Balance, imbalance
from metaopt.symmetry.chain import ChainModule, Layer, LayerChain
from metaopt.symmetry.closed_form import ClosedFormAction, Proposal, SiteMatrices, linear_transport
from metaopt.symmetry.element import Element, GroupElement
from metaopt.symmetry.equalizing import Equalized, equalize
from metaopt.symmetry.finders import (
    FINDERS,
    STEPS,
    Call,
    Findings,
    Sites,
    Step,
    Trace,
    as_chain,
    find_sites,
)
from metaopt.symmetry.finders.attention import ATTENTIONS, Attention
from metaopt.symmetry.finders.network import KINDS, Candidate, Network
from metaopt.symmetry.finders.projection import Projection
from metaopt.symmetry.fold import fold_norms
from metaopt.symmetry.functional import module_loss
from metaopt.symmetry.inputs import LayerInput
from metaopt.symmetry.level_set import LevelSetResult, LevelSetTeleport
from metaopt.symmetry.moves import Move, balance
from metaopt.symmetry.network_sites import symmetries
from metaopt.symmetry.objectives import (
    GradientForm,
    LossFunction,
    MetricNorm,
    Negated,
    Objective,
    OfGradient,
    OfOrbit,
    gradient_norm,
    per_task_sum,
    value_and_gradient,
)
from metaopt.symmetry.orbit import ActingSite, Orbit, OrbitPoint, chain_orbit
from metaopt.symmetry.pair import Pair
from metaopt.symmetry.projected import GROUPS, ProjectedAction
from metaopt.symmetry.rounding import rounded, rounding_error
from metaopt.symmetry.search import GradientAscent, Search, SearchResult
from metaopt.symmetry.site import LeftOut, MatrixView, Site
from metaopt.symmetry.symmetries_found import Symmetries
from metaopt.symmetry.teleportation import Teleportation

__all__ = [
    "ACTIONS",
    "ATTENTIONS",
    "FINDERS",
    "GROUPS",
    "KINDS",
    "STEPS",
    "ActingSite",
    "Action",
    "Activation",
    "Attention",
    "Balance",
    "Call",
    "Candidate",
    "ChainModule",
    "ClosedFormAction",
    "Element",
    "Elementwise",
    "Equalized",
    "Findings",
    "GradientAscent",
    "GradientForm",
    "GroupElement",
    "Identity",
    "Layer",
    "LayerChain",
    "LayerInput",
    "LeakyReLU",
    "LeftOut",
    "LevelSetResult",
    "LevelSetTeleport",
    "LinearAction",
    "LossFunction",
    "MatrixView",
    "MetricNorm",
    "Move",
    "Moved",
    "Negated",
    "Network",
    "Objective",
    "OfGradient",
    "OfOrbit",
    "Orbit",
    "OrbitPoint",
    "Pair",
    "PostActivationAction",
    "PreActivationAction",
    "ProjectedAction",
    "Projection",
    "Proposal",
    "RescalingAction",
    "Search",
    "SearchResult",
    "Site",
    "SiteMatrices",
    "Sites",
    "Step",
    "Symmetries",
    "Teleportation",
    "Trace",
    "as_chain",
    "balance",
    "chain_orbit",
    "equalize",
    "find_sites",
    "fold_norms",
    "gradient_norm",
    "imbalance",
    "linear_transport",
    "make_action",
    "module_loss",
    "per_task_sum",
    "rounded",
    "rounding_error",
    "symmetries",
    "value_and_gradient",
]
