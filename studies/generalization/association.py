"""Correlations between two measures of networks, with confidence intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
RESAMPLES = 2000


class Correlation(NamedTuple):
    """A coefficient and its 95 % bootstrap interval; NaN where there is nothing to correlate."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def pearson(a: Array, b: Array) -> Correlation:
    """Compute the correlation of pairs; those with a number that is not finite are left out."""
    return _with_interval(coefficient, a, b)


def spearman(a: Array, b: Array) -> Correlation:
    """Compute the correlation of ranks; ties share their mean rank."""
    return _with_interval(
        lambda x, y: coefficient(stats.rankdata(x, axis=-1), stats.rankdata(y, axis=-1)), a, b
    )


def partial_pearson(a: Array, b: Array, given: Array) -> Correlation:
    """Pearson of what is left of ``a`` and ``b`` when each is predicted linearly from ``given``."""

    def statistic(x: Array, y: Array, z: Array) -> Array:
        xy, xz, yz = coefficient(x, y), coefficient(x, z), coefficient(y, z)
        xz, yz = np.nan_to_num(xz), np.nan_to_num(yz)  # a constant predicts nothing
        left = (1 - np.square(xz)) * (1 - np.square(yz))
        ratio: Array = (xy - xz * yz) / np.sqrt(np.where(left > 1e-12, left, np.nan))
        return ratio

    return _with_interval(statistic, a, b, given)


def coefficient(a: Array, b: Array) -> Array:
    """Pearson's, along the last axis; NaN where one side is constant."""
    constant = (np.ptp(a, axis=-1) == 0) | (np.ptp(b, axis=-1) == 0)
    a, b = (x - x.mean(axis=-1, keepdims=True) for x in (a, b))
    size = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    result: Array = (a * b).sum(axis=-1) / np.where(constant | (size == 0), np.nan, size)
    return result


def _with_interval(statistic: Callable[..., Array], *samples: Array) -> Correlation:
    finite = np.isfinite(np.stack(samples)).all(axis=0)
    kept = [np.asarray(sample, dtype=float)[finite] for sample in samples]
    count = int(finite.sum())
    value = float(statistic(*kept)) if count > 2 else float("nan")
    if np.isnan(value):
        return Correlation(value, value, value)
    drawn = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
    again = statistic(*(sample[drawn] for sample in kept))
    again = again[np.isfinite(again)]  # not the draws of one pair over and over
    low, high = np.percentile(again, [2.5, 97.5])
    return Correlation(value, float(low), float(high))
