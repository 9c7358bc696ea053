"""Geometric means over tasks, with bootstrap intervals."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
TAILS = (0.025, 0.975)  # of a 95 % interval
FLOOR = 1e-30  # a smaller loss, or 0, counts as this


class GeometricMean(NamedTuple):
    """A geometric mean over tasks with its 95 % bootstrap interval; inf if any task is not finite.

    Attributes:
        mean: the geometric mean.
        low: the lower end of the interval.
        high: the upper end of the interval.
    """

    mean: float
    low: float
    high: float


def geometric_mean(losses: NDArray[np.float64], seed: int = 0) -> GeometricMean:
    """Return the geometric mean of losses, with a 95 % bootstrap interval over tasks.

    Args:
        losses: ``(B,)``, one for each task; smaller ones than ``FLOOR`` count as ``FLOOR``.
        seed: seed of the resampling.
    """
    if not np.isfinite(losses).all():
        return GeometricMean(math.inf, math.inf, math.inf)
    logs = np.log(np.maximum(losses, FLOOR))
    mean = float(np.exp(logs.mean()))
    if len(logs) < 2 or np.ptp(logs) == 0:
        return GeometricMean(mean, mean, mean)
    interval = _bootstrap(logs, seed)
    return GeometricMean(mean, float(np.exp(interval[0])), float(np.exp(interval[1])))


def geometric_means(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return geometric means over the last axis, the tasks; NaN if one of them is not finite.

    Args:
        losses: ``(..., B)``.
    """
    return np.asarray(np.exp(_logs(losses).mean(axis=-1)))


def _logs(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return logarithms, all NaN at a step where a task is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        logs = np.log(np.maximum(losses, FLOOR))
    return np.where(np.isfinite(losses).all(axis=-1, keepdims=True), logs, np.nan)


def log_mean_bands(
    losses: NDArray[np.float64], seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the geometric mean over tasks at every step, with its 95 % bootstrap interval.

    A step where a task is not finite gives NaN, and so a gap in the picture.

    Args:
        losses: ``(steps + 1, B)``.
        seed: seed of the resampling.

    Returns:
        (mean, low, high), each ``(steps + 1,)``.
    """
    mean = geometric_means(losses)
    if losses.shape[1] < 2:
        return mean, mean, mean
    logs = _logs(losses)
    rng = np.random.default_rng(seed)
    draws = rng.integers(losses.shape[1], size=(RESAMPLES // 4, losses.shape[1]))
    resampled = np.stack([logs[:, draw].mean(axis=1) for draw in draws])
    low, high = np.quantile(resampled, TAILS, axis=0)
    return mean, np.exp(low), np.exp(high)


def _bootstrap(logs: NDArray[np.float64], seed: int) -> tuple[float, float]:
    """Return the percentile interval of the mean.

    ``scipy.stats.bootstrap`` draws the same resamples.
    """
    draws = np.random.default_rng(seed).integers(len(logs), size=(RESAMPLES, len(logs)))
    low, high = np.quantile(logs[draws].mean(axis=-1), TAILS)
    return float(low), float(high)


def worst(losses: NDArray[np.float64]) -> float:
    """Return the largest loss over tasks; infinity if one is not finite.

    Args:
        losses: ``(B,)``.
    """
    return float(losses.max()) if np.isfinite(losses).all() else math.inf
