"""What a window of losses is worth to the meta-optimizer."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from metaopt.errors import UserError

MetaLoss = Callable[[Tensor], Tensor]
"""Losses ``(K, B)`` after each of K steps -> a scalar."""


def log_mean(floor: float) -> MetaLoss:
    """mean log(L + floor): losses span fourteen orders of magnitude, and below the floor, which
    is float32 noise, nothing is left to learn."""
    if not floor >= 0:
        raise UserError(
            f"expected a log floor of 0 or more, got {floor}: 1e-12 is below float32's noise"
        )
    return lambda losses: (losses + floor).log().mean()


def log_last(floor: float) -> MetaLoss:
    """mean log(L + floor) of the last step alone: what a window leaves behind. Where it counts on
    the way, networks learn to be quick within a window and not over several."""
    mean = log_mean(floor)
    return lambda losses: mean(losses[-1:])


def log_tail(floor: float) -> MetaLoss:
    """The mean over the last tenth of the steps, where minibatches make the last one noisy."""
    mean = log_mean(floor)
    return lambda losses: mean(losses[-max(1, len(losses) // 10) :])


def paper_sum(floor: float) -> MetaLoss:
    """Algorithm 1: the sum of L over the window, averaged over problems."""
    return lambda losses: losses.sum(dim=0).mean()


META_LOSSES: dict[str, Callable[[float], MetaLoss]] = {
    "log": log_mean,
    "log_last": log_last,
    "log_tail": log_tail,
    "sum": paper_sum,
}
"""Meta-losses by name."""
