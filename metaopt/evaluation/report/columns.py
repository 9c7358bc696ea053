"""The table at chosen steps: what each cell says, and by what it is sorted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from metaopt.evaluation.evaluate import Result
from metaopt.evaluation.table import Line, interval, number, reported_steps


class Cell(NamedTuple):
    """A number as text, smaller text under it, and the whole number to sort by ("" for none)."""

    text: str
    detail: str
    key: str


@dataclass(frozen=True)
class Row:
    """One method."""

    method: str
    learned: bool
    cells: tuple[Cell, ...]


def columns(steps: int) -> list[str]:
    """Headings of the columns after the method's."""
    return [
        "rate",
        *(f"step {step}" for step in reported_steps(steps)),
        "worst problem",
        "not finite",
        "median invariance error",
        "rejected",
        "ms a step",
    ]


def table_rows(results: Sequence[Result], lines: Sequence[Line]) -> list[Row]:
    """One for each result, in their order."""
    return [_row(result, line) for result, line in zip(results, lines, strict=True)]


def _row(result: Result, line: Line) -> Row:
    rate = result.method.rate
    milliseconds = 1e3 * line.seconds_per_step
    return Row(
        result.method.name,
        result.method.learned,
        (
            _cell(math.nan if rate is None else rate),
            *(_cell(mean.mean, interval(mean)) for mean in line.means),
            _cell(line.worst),
            Cell(str(line.non_finite), "", str(line.non_finite)),
            _cell(line.median_invariance_error),
            Cell(str(line.rejected), "", str(line.rejected)),
            Cell(f"{milliseconds:.2f}", "", repr(milliseconds)),
        ),
    )


def _cell(value: float, detail: str = "") -> Cell:
    if not math.isfinite(value):
        return Cell(number(value), "", "")
    return Cell(number(value), detail, repr(float(value)))
