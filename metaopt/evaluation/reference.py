"""The README's table of results, kept with the package, to compare another run with."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any, NamedTuple

from metaopt.evaluation.evaluate import Result
from metaopt.evaluation.statistics import geometric_mean, worst

FILE = "reference.json"
WORST = "worst"
FLOOR = 1e-9
"""Losses below this are the rounding of float32, which differs between processors."""
NEAR_FLOOR = 10.0  # factor that two of these may differ by
TOLERANCE = {WORST: 0.1}  # relative; of the mean over problems:
MEAN_TOLERANCE = 0.02


class Compared(NamedTuple):
    """One number of the README's table, with that of another run.

    Attributes:
        method: the method.
        where: the step, or "worst" for the worst task.
        shown: the number in the README.
        found: the number of this run.
    """

    method: str
    where: str
    shown: float
    found: float

    @property
    def same(self) -> bool:
        """Whether both agree within 2 % (worst tasks: 10 %), or a factor of 10 below ``FLOOR``."""
        low, high = sorted((self.shown, self.found))
        if not math.isfinite(high):
            return low == high
        if high < FLOOR:
            return high <= NEAR_FLOOR * low
        return high - low <= TOLERANCE.get(self.where, MEAN_TOLERANCE) * high


def reference() -> dict[str, Any]:
    """Return the README's table of methods, as ``scripts/publish.py`` kept it as numbers.

    Returns:
        The table under "methods", by method (or method@rate) and column, with the number of
        problems and steps.
    """
    text = (resources.files("metaopt.evaluation") / FILE).read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


def compare(results: Sequence[Result], table: dict[str, dict[str, Any]]) -> Iterator[Compared]:
    """Compare every number of the methods that were evaluated with the README's.

    Args:
        results: one for each method.
        table: the methods of the README's table.
    """
    for result in results:
        losses = result.losses
        for where, shown in table[result.method.name].items():
            last = where == WORST
            found = worst(losses[-1]) if last else geometric_mean(losses[int(where)]).mean
            yield Compared(result.method.name, where, math.inf if shown is None else shown, found)
