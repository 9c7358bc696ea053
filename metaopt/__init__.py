"""Learned optimizers that move a network's weights along the symmetries of its parameters.

Importing this needs torch, numpy and safetensors alone. Packages of an extra are imported where
they are used. A call that needs a missing package says which extra has it.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from metaopt import learned, measures, optim, symmetry, tasks
from metaopt.errors import UserError
from metaopt.extras import extra
from metaopt.learned.checkpoint import load_meta_optimizer as load_pretrained
from metaopt.learned.checkpoint import pretrained_card
from metaopt.learned.checkpoint import pretrained_names as list_pretrained
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.optim import TeleportingOptimizer
from metaopt.symmetry import balance, equalize, symmetries

if TYPE_CHECKING:
    from metaopt import evaluation, training

__version__ = "0.1.0"

__all__ = [
    "LearnedOptimizer",
    "TeleportingOptimizer",
    "UserError",
    "balance",
    "equalize",
    "evaluation",
    "learned",
    "list_pretrained",
    "load_pretrained",
    "measures",
    "optim",
    "pretrained_card",
    "symmetries",
    "symmetry",
    "tasks",
    "training",
]


def __getattr__(name: str) -> ModuleType:
    """Import ``metaopt.evaluation`` and ``metaopt.training`` when they are first used."""
    if name not in ("evaluation", "training"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with extra("train"):
        return import_module(f"{__name__}.{name}")
