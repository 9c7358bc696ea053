"""The table of the report: what each cell shows, and the number that it is sorted by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from metaopt.evaluation.evaluate import Result
from metaopt.evaluation.table import INTERVAL, Line, headings, interval, number


class Cell(NamedTuple):
    """A cell of the table.

    Attributes:
        text: the number as text.
        detail: smaller text below it.
        key: the whole number, to sort by; "" for none.
    """

    text: str
    detail: str
    key: str


@dataclass(frozen=True)
class Row:
    """A row of the table, for one method.

    Attributes:
        method: the method's name.
        learned: whether it was meta-trained.
        cells: one for each column.
    """

    method: str
    learned: bool
    cells: tuple[Cell, ...]


def columns(steps: int, lines: Sequence[Line] = ()) -> list[str]:
    """Return the headings of the columns after that of the method.

    Args:
        steps: the last step.
        lines: of the table; tasks of any module add columns.
    """
    return ["rate", *(name for name in headings(steps, lines)[1:] if name != INTERVAL)]


def table_rows(results: Sequence[Result], lines: Sequence[Line]) -> list[Row]:
    """Return one row for each result, in order.

    Args:
        results: one for each method.
        lines: their lines of the table.
    """
    return [_row(result, line) for result, line in zip(results, lines, strict=True)]


def _row(result: Result, line: Line) -> Row:
    rate = result.method.rate
    milliseconds = 1e3 * line.seconds_per_step
    return Row(
        result.method.name,
        result.method.learned,
        (
            _cell(math.nan if rate is None else rate),
            *(_cell(mean.mean, interval(mean.low, mean.high)) for mean in line.means),
            _cell(line.worst),
            Cell(str(line.non_finite), "", str(line.non_finite)),
            _cell(line.median_invariance_error),
            Cell(str(line.rejected), "", str(line.rejected)),
            Cell(f"{milliseconds:.2f}", "", repr(milliseconds)),
            *map(_cell, line.held_out.values()),
        ),
    )


def _cell(value: float, detail: str = "") -> Cell:
    if not math.isfinite(value):
        return Cell(number(value), "", "")
    return Cell(number(value), detail, repr(float(value)))
