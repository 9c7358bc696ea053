"""Hand-made optimizers: teleporting ones, and the second-order reference."""

from metaopt.optim.levenberg_marquardt import LevenbergMarquardt
from metaopt.optim.teleporting import BUFFER_POLICIES, TeleportingOptimizer

__all__ = ["BUFFER_POLICIES", "LevenbergMarquardt", "TeleportingOptimizer"]
