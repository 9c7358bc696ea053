"""Hand-made optimizers: teleporting ones, and the second-order reference."""

from metaopt.optim.buffers import POLICIES as BUFFER_POLICIES
from metaopt.optim.levenberg_marquardt import LevenbergMarquardt
from metaopt.optim.teleporting import TeleportingOptimizer

__all__ = ["BUFFER_POLICIES", "LevenbergMarquardt", "TeleportingOptimizer"]
