"""Symmetries of a chain of layers: group actions, the exponential, search along the orbit."""

from metaopt.symmetry.action import GroupAction, LayerInput, Move
from metaopt.symmetry.actions import (
    ACTIONS,
    PostActivationAction,
    PreActivationAction,
    RescalingAction,
    make_action,
)
from metaopt.symmetry.objectives import MetricNorm, Negated, gradient_norm
from metaopt.symmetry.search import GradientAscent
from metaopt.symmetry.teleport import Teleportation, Teleported, teleport

__all__ = [
    "ACTIONS",
    "GradientAscent",
    "GroupAction",
    "LayerInput",
    "MetricNorm",
    "Move",
    "Negated",
    "PostActivationAction",
    "PreActivationAction",
    "RescalingAction",
    "Teleportation",
    "Teleported",
    "gradient_norm",
    "make_action",
    "teleport",
]
