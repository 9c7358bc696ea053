"""The README's table of results, kept with the package, to compare another run with."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any, NamedTuple

from metaopt.errors import UserError
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


def parse_table(page: str) -> dict[str, Any]:
    """Return the README's table of methods as numbers.

    Args:
        page: the text of the README.

    Returns:
        The table under "methods", by method (or method@rate) and column, with the number of
        problems and steps.
    """
    found = re.search(r"<!-- table: methods -->\n(.*?)<!-- end -->", page, re.DOTALL)
    if found is None:
        raise UserError("expected a page with a table of methods, got one without: give README.md")
    lines = [[cell.strip() for cell in line.strip("|\n ").split("|")] for line in
             found[1].strip().splitlines()]  # fmt: skip
    headings, _, *rows = lines
    columns = {
        name.removeprefix("step ").replace("worst at the last", WORST): index
        for index, name in enumerate(headings)
        if name.startswith(("step ", WORST))
    }
    table = {}
    for row in rows:
        name, rate = row[0].strip("`"), row[1]
        if rate == "all":  # the envelope of many
            continue
        key = name if rate == "–" else f"{name}@{rate}"
        table[key] = {column: _number(row[index]) for column, index in columns.items()}
    return {"problems": 64, "steps": 100, "methods": table}


def reference() -> dict[str, Any]:
    """Return what :func:`parse_table` made of the README of this version."""
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


def _number(cell: str) -> float | None:
    """Return the number of a cell; None if it is not finite, for which JSON has no number."""
    try:
        return float(cell)
    except ValueError:
        return None
