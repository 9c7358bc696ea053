"""The table of results, with one line for each method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from metaopt.evaluation.evaluate import Result
from metaopt.evaluation.statistics import GeometricMean, geometric_mean, worst


@dataclass(frozen=True)
class Line:
    """The numbers of one method in the table of results.

    Attributes:
        method: the method's name.
        means: geometric means over tasks at each reported step.
        worst: largest loss of a task at the last step; inf if one is not finite.
        non_finite: number of tasks whose loss is not finite at the last step.
        median_invariance_error: median over teleportations; NaN if there were none.
        rejected: number of rejected teleportations, over tasks and steps.
        seconds_per_step: wall clock of a step of the batch.
        held_out: means over tasks of the numbers at the last step, by name.
    """

    method: str
    means: tuple[GeometricMean, ...]
    worst: float
    non_finite: int
    median_invariance_error: float
    rejected: int
    seconds_per_step: float
    held_out: Mapping[str, float] = field(default_factory=dict)


def reported_steps(steps: int) -> tuple[int, ...]:
    """Return the steps that the table shows: 10, 30, 50, 100 and so on, and the last step.

    Args:
        steps: the last step.
    """
    return tuple(sorted({t for t in (10, 30, 50, 100, 300) if t < steps} | {steps}))


def summarise(results: Sequence[Result]) -> list[Line]:
    """Return the lines of the table, in the order of the results.

    Args:
        results: one for each method.
    """
    return [_line(result) for result in results]


def _line(result: Result) -> Line:
    losses = result.losses
    run = result.trajectory
    errors = run.invariance_errors[run.invariance_errors.isfinite()]
    last = losses[-1]
    finite = np.isfinite(last)
    return Line(
        result.method.name,
        tuple(geometric_mean(losses[t]) for t in reported_steps(len(losses) - 1)),
        worst(last),
        int((~finite).sum()),
        float(errors.median()) if len(errors) else math.nan,
        int(run.rejected.sum()),
        run.seconds_per_step,
        {name: float(np.mean(own)) for name, own in result.held_out.items()}
        | ({"state, kB": result.state_bytes / 1e3} if result.held_out else {}),
    )


INTERVAL = "95 % interval at the last"


def headings(steps: int, lines: Sequence[Line] = ()) -> list[str]:
    """Return the headings of the columns.

    Args:
        steps: the last step.
        lines: of the table; tasks of any module add columns.
    """
    return [
        "method",
        *(f"step {t}" for t in reported_steps(steps)),
        INTERVAL,
        "worst problem",
        "not finite",
        "median invariance error",
        "rejected",
        "ms a step",
        *held_out_names(lines),
    ]


def held_out_names(lines: Sequence[Line]) -> list[str]:
    """Return the names of what was measured at the last step beside the losses.

    Args:
        lines: of the table.
    """
    return list(dict.fromkeys(name for line in lines for name in line.held_out))


def cells(line: Line) -> list[str]:
    """Return the cells of a line as text."""
    last = line.means[-1]
    return [
        line.method,
        *(number(mean.mean) for mean in line.means),
        interval(last.low, last.high) or "–",
        number(line.worst),
        str(line.non_finite),
        number(line.median_invariance_error),
        str(line.rejected),
        f"{1e3 * line.seconds_per_step:.2f}",
        *(number(value) for value in line.held_out.values()),
    ]


def interval(low: float, high: float) -> str:
    """Return an interval as text, "[low, high]"; "" if it is not finite, as a task diverged."""
    return f"[{number(low)}, {number(high)}]" if math.isfinite(low) else ""


def as_text(lines: Sequence[Line], steps: int) -> str:
    """Return the table in fixed width, for a terminal.

    Args:
        lines: what :func:`summarise` gave.
        steps: the last step.
    """
    body = [headings(steps, lines), *(cells(line) for line in lines)]
    widths = [max(len(row[i]) for row in body) for i in range(len(body[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in body
    )


def number(value: float) -> str:
    """Return a number with three significant digits; "–" for NaN, "diverged" for infinity."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "diverged"
    return f"{value:.3g}"
