r"""How much faster an optimizer is than a tuned baseline, in steps, and the mean over tasks.

The training loss of a run is smoothed: :math:`s_k` is its mean over the last five hundredths of the
run at hundredth k = 5 ... 100. With :math:`b_k` that of the baseline on the same seed, which has
the same initial weights and minibatches,

.. math:: \text{speed-up} = \frac{\min\{k : b_k \le b_{100}\}}{\min\{k : s_k \le b_{100}\}}.

An optimizer that never gets to the baseline's final loss is slower: its speed-up is then the part
of the run in which the baseline gets to the optimizer's final loss,
:math:`\min\{k : b_k \le s_{100}\} / 100`, which is below 1. So all speed-ups are between 0.05 and
20, and the baseline has 1. Over tasks and seeds stands the interquartile mean, the mean of the
middle half, as in Celo (arXiv 2501.12670) and rliable (arXiv 2108.13264); its 95 % interval is
of bootstrap samples of tasks, each with all its seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from studies.suite.runs import LAST

RESAMPLES = 2000
TAILS = (0.025, 0.975)

Numbers = NDArray[np.float64]


class Interval(NamedTuple):
    """A mean with its 95 % bootstrap interval.

    Attributes:
        mean: the interquartile mean.
        low: the lower end.
        high: the upper end.
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} ({self.low:.2f} to {self.high:.2f})"


def losses_of(curve: Sequence[float | None]) -> Numbers:
    """Return the mean losses of the parts of a run; one that was not finite is infinite.

    Args:
        curve: as it is kept.
    """
    return np.array([np.inf if value is None else value for value in curve], dtype=np.float64)


def smoothed(curve: Sequence[float | None]) -> Numbers:
    """Return the means of each ``LAST`` parts of a run in a row.

    Args:
        curve: the mean loss of each part, None where it was not finite.
    """
    losses = losses_of(curve)
    return np.array([losses[k - LAST : k].mean() for k in range(LAST, len(losses) + 1)])


def speed_up(curve: Sequence[float | None], baseline: Sequence[float | None]) -> float:
    """Return the speed-up of a run over that of a baseline: see the top of this module.

    Args:
        curve: the mean loss of each part of the run.
        baseline: that of the baseline, of as many parts; its losses are finite.
    """
    own, other = smoothed(curve), smoothed(baseline)
    goal = other[-1]
    if (own <= goal).any():
        return (_first(other <= goal) + LAST) / (_first(own <= goal) + LAST)
    return (_first(other <= own[-1]) + LAST) / len(baseline)


def _first(where: NDArray[np.bool_]) -> int:
    return int(where.argmax())


def reached(curve: Sequence[float | None], baseline: Sequence[float | None]) -> bool:
    """Return whether a run gets to the final loss of a baseline.

    Args:
        curve: the mean loss of each part of the run.
        baseline: that of the baseline.
    """
    return bool((smoothed(curve) <= smoothed(baseline)[-1]).any())


def interquartile_mean(values: Numbers) -> float:
    """Return the mean without a quarter of all values, rounded down, at either end.

    Args:
        values: of any shape, at least one.
    """
    ordered = np.sort(values, axis=None)
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def with_interval(values: Numbers, seed: int = 0) -> Interval:
    """Return the interquartile mean with its 95 % bootstrap interval over tasks.

    Args:
        values: ``(tasks, seeds)``.
        seed: of the resampling.
    """
    draws = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    means = [interquartile_mean(values[draw]) for draw in draws]
    low, high = np.quantile(means, TAILS)
    return Interval(interquartile_mean(values), float(low), float(high))
