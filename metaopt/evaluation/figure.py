"""Loss against step, on a log axis, with bands; legible in grey."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray

from metaopt.evaluation.evaluate import Result
from metaopt.evaluation.statistics import log_mean_bands

LINE_STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")


class Band(NamedTuple):
    """A curve with the range around it, each ``(steps + 1,)``; a gap where not finite."""

    label: str
    middle: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    thick: bool = False


def loss_figure(results: Sequence[Result], title: str) -> bytes:
    """A PNG: geometric mean over problems of each method, with 95 % bootstrap bands.

    Learned methods are drawn thicker.
    """
    bands = [
        Band(result.method.name, *log_mean_bands(result.losses), result.method.learned)
        for result in results
    ]
    return band_figure(bands, title)


def band_figure(bands: Sequence[Band], title: str) -> bytes:
    """A PNG of curves with bands; lines differ in style and marker as well as in colour."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    colours = colormaps["tab10" if len(bands) <= 10 else "tab20"]
    handles = []
    for i, band in enumerate(bands):
        steps = np.arange(len(band.middle))
        middle, low, high = (
            np.where(np.isfinite(curve), curve, np.nan)
            for curve in (band.middle, band.low, band.high)
        )
        (line,) = axes.plot(
            steps,
            middle,
            LINE_STYLES[i % len(LINE_STYLES)],
            color=colours(i % colours.N),
            marker=MARKERS[i % len(MARKERS)],
            markevery=(i % 7, max(1, len(steps) // 10)),
            markersize=4,
            linewidth=2.2 if band.thick else 1.2,
        )
        handles.append(line)
        axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("loss, geometric mean over problems")
    axes.set_title(title, fontsize=10)
    axes.grid(True, which="major", alpha=0.3)
    # Names given here rather than as labels: a path may start with _ or look like TeX.
    names = [band.label for band in bands]
    legend = figure.legend(handles, names, fontsize=8, loc="outside right upper")
    for text in legend.get_texts():
        text.set_parse_math(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
