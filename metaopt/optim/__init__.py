"""Hand-made optimizers that teleport."""

from metaopt.optim.teleporting import BUFFER_POLICIES, TeleportingOptimizer

__all__ = ["BUFFER_POLICIES", "TeleportingOptimizer"]
