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
from metaopt.symmetry.chain import ChainModule, Layer, LayerChain
from metaopt.symmetry.closed_form import ClosedFormAction, Proposal, SiteMatrices, linear_transport
from metaopt.symmetry.element import Element, GroupElement
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
from metaopt.symmetry.functional import module_loss
from metaopt.symmetry.inputs import LayerInput
from metaopt.symmetry.level_set import LevelSetResult, LevelSetTeleport
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
from metaopt.symmetry.search import GradientAscent, Search, SearchResult
from metaopt.symmetry.site import LeftOut, MatrixView, Site
from metaopt.symmetry.teleportation import Teleportation

__all__ = [
    "ACTIONS",
    "FINDERS",
    "STEPS",
    "ActingSite",
    "Action",
    "Activation",
    "Call",
    "ChainModule",
    "ClosedFormAction",
    "Element",
    "Elementwise",
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
    "Moved",
    "Negated",
    "Objective",
    "OfGradient",
    "OfOrbit",
    "Orbit",
    "OrbitPoint",
    "PostActivationAction",
    "PreActivationAction",
    "Proposal",
    "RescalingAction",
    "Search",
    "SearchResult",
    "Site",
    "SiteMatrices",
    "Sites",
    "Step",
    "Teleportation",
    "Trace",
    "as_chain",
    "chain_orbit",
    "find_sites",
    "gradient_norm",
    "linear_transport",
    "make_action",
    "module_loss",
    "per_task_sum",
    "value_and_gradient",
]
