"""The table of results: one line a method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metaopt.evaluation.evaluate import Result
from metaopt.evaluation.statistics import GeometricMean, geometric_mean, worst


@dataclass(frozen=True)
class Line:
    """One method's numbers."""

    method: str
    means: tuple[GeometricMean, ...]  # at each reported step
    worst: float  # largest loss of a problem at the last step; inf where one is not finite
    non_finite: int  # problems whose loss is not finite at the last step
    median_invariance_error: float  # NaN where nothing was teleported
    rejected: int  # rejected teleportations, over problems and steps
    seconds_per_step: float


def reported_steps(steps: int) -> tuple[int, ...]:
    """10, 30, 50, 100, ... up to and with the last step."""
    return tuple(sorted({t for t in (10, 30, 50, 100, 300) if t < steps} | {steps}))


def summarise(results: Sequence[Result]) -> list[Line]:
    """The table's lines, in the order of the results."""
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
    )


def headings(steps: int) -> list[str]:
    """Column headings."""
    return [
        "method",
        *(f"step {t}" for t in reported_steps(steps)),
        "95 % interval at the last",
        "worst problem",
        "not finite",
        "median invariance error",
        "rejected",
        "ms a step",
    ]


def cells(line: Line) -> list[str]:
    """One line's cells, as text."""
    last = line.means[-1]
    return [
        line.method,
        *(number(mean.mean) for mean in line.means),
        interval(last),
        number(line.worst),
        str(line.non_finite),
        number(line.median_invariance_error),
        str(line.rejected),
        f"{1e3 * line.seconds_per_step:.2f}",
    ]


def interval(mean: GeometricMean) -> str:
    """[low, high], or – where a problem diverged."""
    return f"[{number(mean.low)}, {number(mean.high)}]" if math.isfinite(mean.mean) else "–"


def as_text(lines: Sequence[Line], steps: int) -> str:
    """The table in fixed width, for a terminal."""
    body = [headings(steps), *(cells(line) for line in lines)]
    widths = [max(len(row[i]) for row in body) for i in range(len(body[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in body
    )


def number(value: float) -> str:
    """Three significant digits; – for NaN, "diverged" for infinity."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "diverged"
    return f"{value:.3g}"
