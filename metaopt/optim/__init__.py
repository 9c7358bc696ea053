"""Optimizers that are not learned: a wrapper that teleports, and Levenberg-Marquardt."""

from metaopt.optim.buffers import POLICIES as BUFFER_POLICIES
from metaopt.optim.lbfgs import RestartingLBFGS
from metaopt.optim.levenberg_marquardt import LevenbergMarquardt
from metaopt.optim.teleporting import TeleportingOptimizer

__all__ = ["BUFFER_POLICIES", "LevenbergMarquardt", "RestartingLBFGS", "TeleportingOptimizer"]
