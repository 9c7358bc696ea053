"""The chart of the report as shapes, in per cent of its size, so that text keeps its size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metaopt.evaluation.evaluate import Result
from metaopt.evaluation.report.axis import Tick, log_limits, log_ticks, step_ticks
from metaopt.evaluation.statistics import log_mean_bands
from metaopt.evaluation.styles import method_styles
from metaopt.evaluation.table import interval, number

MOST_STEPS = 250  # drawn of a longer run, besides its last: the page stays small
MARKS = 10  # on a line

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """The line of a method in the chart.

    Attributes:
        name: the method's name.
        style: classes of chart.css.
        marker: index of the marker.
        line: path of the line, in thousandths of the plot.
        band: path of the band around it, in thousandths of the plot.
        marks: positions of the markers, in per cent of the plot.
        values: text of the values at the shown steps, as in the table.
        intervals: text of the intervals at these steps.
    """

    name: str
    style: str
    marker: int
    line: str
    band: str
    marks: tuple[tuple[str, str], ...]
    values: tuple[str, ...]
    intervals: tuple[str, ...]


@dataclass(frozen=True)
class Chart:
    """All that the template of the chart draws.

    Attributes:
        problems: number of tasks.
        steps: the steps that are drawn.
        curves: one for each method.
        x_ticks: ticks of the steps, in per cent from the left.
        y_ticks: ticks of the losses, in per cent from the top.
        bottom: lower end of the log axis, as a power of ten.
        top: upper end of the log axis, as a power of ten.
    """

    problems: int
    steps: tuple[int, ...]
    curves: tuple[Curve, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    bottom: float
    top: float

    @property
    def data(self) -> dict[str, object]:
        """What the script of the page needs; the values are the text of the table."""
        methods = [{"name": curve.name, "values": curve.values} for curve in self.curves]
        return {"steps": self.steps, "bottom": self.bottom, "top": self.top, "methods": methods}

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(curve.line for curve in self.curves)

    @property
    def ends(self) -> list[tuple[str, str]]:
        """Pairs (name, value) at the last step, the lowest first and what diverged last."""
        last = [(curve.name, curve.values[-1]) for curve in self.curves]
        return sorted(last, key=lambda pair: float("inf" if pair[1] == "diverged" else pair[1]))


def draw(results: Sequence[Result]) -> Chart:
    """Return the chart of results: geometric means over tasks, with 95 % bootstrap bands.

    Args:
        results: one for each method.
    """
    last = len(results[0].losses) - 1
    steps = shown_steps(last)
    bands = [log_mean_bands(result.losses[list(steps)]) for result in results]
    styles = method_styles([result.method.name for result in results])
    bottom, top = log_limits(np.concatenate([np.ravel(band) for band in bands]).tolist())
    across = np.array(steps) / max(last, 1)

    def down(losses: Floats) -> Floats:
        with np.errstate(invalid="ignore"):
            return np.asarray((top - np.log10(losses)) / (top - bottom))

    return Chart(
        results[0].losses.shape[1],
        steps,
        tuple(
            Curve(
                result.method.name,
                f"colour-{style.colour} dash-{style.dash}" + " learned" * result.method.learned,
                style.marker,
                _line(across, down(mean)),
                _band(across, down(low), down(high)),
                _marks(across, down(mean), i),
                tuple(number(value if math.isfinite(value) else math.inf) for value in mean),
                tuple(map(interval, low, high)),
            )
            for i, (result, style, (mean, low, high)) in enumerate(
                zip(results, styles, bands, strict=True)
            )
        ),
        tuple(Tick(100 * tick.at / max(last, 1), tick.label) for tick in step_ticks(last)),
        tuple(
            Tick(100 * (top - tick.at) / (top - bottom), tick.label)
            for tick in log_ticks(bottom, top)
        ),
        bottom,
        top,
    )


def shown_steps(last: int) -> tuple[int, ...]:
    """Return the steps to draw: all of them, or evenly spread ones and the last.

    Args:
        last: the last step.

    Example:
        >>> shown_steps(3)
        (0, 1, 2, 3)
        >>> shown_steps(751)[-3:]
        (744, 748, 751)
    """
    stride = max(1, math.ceil(last / MOST_STEPS))
    return tuple(sorted({*range(0, last + 1, stride), last}))


def _stretches(values: Floats) -> Iterator[slice]:
    """Yield the ranges where values are finite without a gap."""
    edges = np.diff(np.isfinite(values).astype(int), prepend=0, append=0)
    starts, stops = (np.flatnonzero(edges == sign).tolist() for sign in (1, -1))
    yield from map(slice, starts, stops)


def _line(x: Floats, y: Floats) -> str:
    return "".join("M" + _points(x[part], y[part]) for part in _stretches(y))


def _band(x: Floats, low: Floats, high: Floats) -> str:
    return "".join(
        f"M{_points(x[part], high[part])} {_points(x[part][::-1], low[part][::-1])}Z"
        for part in _stretches(low)
    )


def _points(x: Floats, y: Floats) -> str:
    """Return a path through points; the points after the first need no letter."""
    return " ".join(f"{1000 * a:.4g},{1000 * b:.4g}" for a, b in zip(x, y, strict=True))


def _marks(x: Floats, y: Floats, method: int) -> tuple[tuple[str, str], ...]:
    """Return the places of markers: spread over the line, and at points that stand alone.

    They are at other steps for each method.
    """
    stride = max(1, len(x) // MARKS)
    alone = {part.start for part in _stretches(y) if part.stop - part.start == 1}
    places = sorted({*range(3 * method % stride, len(x), stride), *alone})
    return tuple(
        (f"{100 * x[i]:.4g}%", f"{100 * y[i]:.4g}%") for i in places if math.isfinite(y[i])
    )
