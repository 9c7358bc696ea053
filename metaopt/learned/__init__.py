"""Learned optimizers: the networks m1 and m2, and their use as a torch optimizer."""

from metaopt.learned.element import ELEMENT_RULES, ElementConfig, ElementRule
from metaopt.learned.meta_optimizer import MetaOptimizer
from metaopt.learned.observation import Observation
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.learned.spec import MetaOptimizerSpec
from metaopt.learned.update import UPDATE_RULES, UpdateConfig, UpdateRule

__all__ = [
    "ELEMENT_RULES",
    "UPDATE_RULES",
    "ElementConfig",
    "ElementRule",
    "LearnedOptimizer",
    "MetaOptimizer",
    "MetaOptimizerSpec",
    "Observation",
    "UpdateConfig",
    "UpdateRule",
]
