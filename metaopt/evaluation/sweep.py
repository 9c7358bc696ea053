"""Learning rates of the baselines, chosen on validation tasks."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from metaopt.errors import UserError
from metaopt.evaluation.methods import BASELINES
from metaopt.evaluation.rollout import rollout
from metaopt.evaluation.statistics import geometric_mean
from metaopt.tasks import RegressionFamily, first_seeds

RATES = tuple(
    float(f"{rate:.0e}")
    for rate in np.outer(10.0 ** np.arange(-5, 2), (1.0, 2.0, 3.0, 4.0, 5.0, 7.0)).flat
)
"""The learning rates of a sweep: six in each power of ten, from 1e-5 to 70."""


class Swept(NamedTuple):
    """The result of one method at one learning rate.

    Attributes:
        method: the method's name.
        rate: the learning rate.
        loss: geometric mean over tasks of the losses after the last step; inf if any diverged.
    """

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
    """Run each method at each learning rate on validation tasks.

    Args:
        names: names of baselines.
        family: the task family.
        problems: number of validation tasks.
        steps: optimization steps of each run.
        rates: the learning rates.

    Yields:
        One result for each method and rate.
    """
    seeds = first_seeds("validation", problems)
    for name in names:
        for rate in rates:
            tasks = family.sample(seeds)
            method = replace(BASELINES[name], rate=rate)
            run = rollout(tasks, method.optimizer(tasks), steps, measure_invariance=False)
            yield Swept(name, rate, geometric_mean(run.losses[-1].numpy()).mean)


def best(swept: Sequence[Swept]) -> list[Swept]:
    """Return the best rate of each method, in order of appearance.

    Args:
        swept: what :func:`sweep` gave.

    Raises:
        UserError: if a method diverged at all of its rates.
    """
    names = dict.fromkeys(result.method for result in swept)
    own = {name: [r for r in swept if r.method == name] for name in names}
    rates = {name: lowest_rate(name, {r.rate: r.loss for r in own[name]}) for name in names}
    return [next(r for r in own[name] if r.rate == rates[name]) for name in names]


def lowest_rate(name: str, losses: Mapping[float, float]) -> float:
    """Return the learning rate with the lowest finite loss.

    Args:
        name: what is tuned, for the message.
        losses: the loss at each rate; it is not finite where the run diverged.

    Raises:
        UserError: if no loss is finite.
    """
    finite = {rate: loss for rate, loss in losses.items() if math.isfinite(loss)}
    if not finite:
        raise diverged(name, losses)
    return min(finite, key=finite.__getitem__)


def diverged(names: str, rates: Collection[float]) -> UserError:
    """Return the error for methods that diverged at all of these learning rates."""
    return UserError(
        f"expected a learning rate at which {names[:80]} does not diverge, got a loss that is not "
        f"finite at all {len(rates)} from {min(rates):g} to {max(rates):g}: take lower rates, "
        "fewer steps or other tasks"
    )
