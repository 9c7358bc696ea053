"""Optimizers without anything learned, each at its best learning rate: what they reach.

The protocol of google/learned_optimization: 14 learning rates on a log grid, five seeds each (here
five validation problems or more), and the envelope over all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from metaopt.evaluation.methods import BASELINES, chain_methods
from metaopt.evaluation.sweep import lowest_rate
from metaopt.tasks import RegressionFamily
from studies.learned_teleportation.curves import Curves, measure

RATES = tuple(float(f"{rate:.1e}") for rate in np.logspace(-5, 1.5, 14))
"""The learning rates that are tried: half a decade apart, from 1e-5 to 32."""

SECOND_ORDER = ("levenberg_marquardt",)
"""Second-order methods, which are shown but are not part of the envelope: a step costs much more.

For the same reason they try three dampings, and have no more steps than the figure."""

DAMPINGS = (1e-4, 1e-3, 1e-2)
RACED = 8  # validation problems that choose the rate of a race


class Tuned(NamedTuple):
    """A baseline at the rate that is best on validation problems at the last step."""

    rate: float
    curves: Curves  # on the problems reported


class Envelope(NamedTuple):
    """The lowest loss of any baseline at each step, with a rate chosen anew for each step."""

    losses: NDArray[np.float64]  # (steps + 1,) geometric means
    methods: list[str]


class Baselines:
    """All baselines on one family, with the rates that they may choose from."""

    def __init__(
        self,
        out: Path,
        family: RegressionFamily,
        validation: Sequence[int],
        test: Sequence[int],
        steps: int,
        names: Sequence[str] | None = None,
        rates: Sequence[float] = RATES,
    ) -> None:
        self.out = out
        self.family = family
        self.steps = steps
        self.validation_seeds = validation
        self.test_seeds = test
        every = (name for name in chain_methods() if name in BASELINES)
        self.names = list(every if names is None else names)
        self.rates = {
            name: list(DAMPINGS)
            if name in SECOND_ORDER
            else sorted({*rates, BASELINES[name].rate or rates[0]})
            for name in self.names
        }
        total = sum(len(rates) for rates in self.rates.values())
        with tqdm(total=total, desc="baselines", unit="rate") as bar:
            self.validation, self.test = {}, {}
            for name in self.names:
                for rate in self.rates[name]:
                    self.validation[name, rate] = self.run(name, rate, validation, "validation")
                    self.test[name, rate] = self.run(name, rate, test, "test")
                    bar.update()

    def run(
        self, name: str, rate: float, seeds: Sequence[int], role: str, steps: int | None = None
    ) -> Curves:
        """Measure one method at one rate, or read it from disk if it was measured before."""
        steps = self.steps if steps is None else steps
        method = replace(BASELINES[name], rate=rate)
        path = self.out / f"{name}@{rate:g}-{role}-{steps}.npz"
        return measure(path, f"{name}@{rate!r}", method.optimizer, self.family, seeds, steps)

    def best_rate(self, name: str, step: int) -> float:
        """Return the rate with the lowest loss on validation tasks at a step."""
        rates = self.rates[name]
        return lowest_rate(name, {rate: self.validation[name, rate].mean(step) for rate in rates})

    def race(self, name: str, steps: int) -> Tuned:
        """Measure a method over many steps, at the rate that is best for them.

        That is the best rate for the usual steps or one of its two neighbours, chosen on a few
        validation tasks. Second-order methods keep to the usual steps.
        """
        if name in SECOND_ORDER or steps <= self.steps:
            return self.tuned(name)
        rates = self.rates[name]
        at = rates.index(self.best_rate(name, self.steps))
        few = self.validation_seeds[:RACED]
        near = rates[max(at - 1, 0) : at + 2]
        losses = {rate: self.run(name, rate, few, "validation", steps).mean(steps) for rate in near}
        rate = lowest_rate(name, losses)
        return Tuned(rate, self.run(name, rate, self.test_seeds, "test", steps))

    def tuned(self, name: str) -> Tuned:
        """Return a method at the rate that is best at the last step."""
        rate = self.best_rate(name, self.steps)
        return Tuned(rate, self.test[name, rate])

    def envelope(self) -> Envelope:
        """Return the envelope of all but the second-order methods."""
        first = [name for name in self.names if name not in SECOND_ORDER]
        losses, methods = [], []
        for step in range(self.steps + 1):
            winner = min(
                first, key=lambda n: self.validation[n, self.best_rate(n, step)].mean(step)
            )
            methods.append(winner)
            losses.append(self.test[winner, self.best_rate(winner, step)].mean(step))
        return Envelope(np.array(losses), methods)


def steps_to_reach(curves: Curves, target: float) -> int | None:
    """Return the first step with a geometric mean of at most ``target``; None if there is none."""
    reached = np.flatnonzero(curves.means <= target)
    return int(reached[0]) if len(reached) else None
