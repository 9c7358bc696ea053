"""Symmetries of a chain of layers: group actions, the exponential, search along the orbit."""

from metaopt.symmetry.action import GroupAction, LayerInput, Move
from metaopt.symmetry.actions import (
    ACTIONS,
    PostActivationAction,
    PreActivationAction,
    RescalingAction,
    make_action,
)
from metaopt.symmetry.teleport import Teleportation, Teleported, teleport

__all__ = [
    "ACTIONS",
    "GroupAction",
    "LayerInput",
    "Move",
    "PostActivationAction",
    "PreActivationAction",
    "RescalingAction",
    "Teleportation",
    "Teleported",
    "make_action",
    "teleport",
]
