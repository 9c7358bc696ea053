"""Learned teleportation: learned optimizers that move a network's weights along symmetries."""

from metaopt import measures, tasks
from metaopt.errors import UserError
from metaopt.learned.checkpoint import load_meta_optimizer as load_pretrained
from metaopt.learned.checkpoint import pretrained_card
from metaopt.learned.checkpoint import pretrained_names as list_pretrained
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.optim import TeleportingOptimizer

__version__ = "0.1.0"

__all__ = [
    "LearnedOptimizer",
    "TeleportingOptimizer",
    "UserError",
    "list_pretrained",
    "load_pretrained",
    "measures",
    "pretrained_card",
    "tasks",
]
