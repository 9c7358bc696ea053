"""Learning rates, chosen on validation problems."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from metaopt.evaluation.methods import BASELINES
from metaopt.evaluation.rollout import rollout
from metaopt.evaluation.statistics import geometric_mean
from metaopt.tasks import RegressionFamily, first_seeds

RATES = tuple(
    float(f"{rate:.0e}")
    for rate in np.outer(10.0 ** np.arange(-5, 2), (1.0, 2.0, 3.0, 4.0, 5.0, 7.0)).flat
)
"""Six rates a decade from 1e-5 to 70."""


class Swept(NamedTuple):
    """One rate of one method: the geometric mean of its last losses, inf if any diverged."""

    method: str
    rate: float
    loss: float


def sweep(
    names: Sequence[str],
    family: RegressionFamily,
    problems: int,
    steps: int,
    rates: Sequence[float] = RATES,
) -> Iterator[Swept]:
    """Each method at each rate on validation problems."""
    seeds = first_seeds("validation", problems)
    for name in names:
        for rate in rates:
            problem = family.sample(seeds)
            method = replace(BASELINES[name], rate=rate)
            run = rollout(problem, method.optimizer(problem), steps, measure_invariance=False)
            yield Swept(name, rate, geometric_mean(run.losses[-1].numpy()).mean)


def best(swept: Sequence[Swept]) -> list[Swept]:
    """The best rate of each method, in order of appearance."""
    names = dict.fromkeys(result.method for result in swept)
    return [min((r for r in swept if r.method == name), key=lambda r: r.loss) for name in names]
