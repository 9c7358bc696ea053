"""Loss against step, on a log axis, with interval bands; legible in grey."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from metaopt.evaluation.evaluate import Result
from metaopt.evaluation.statistics import log_mean_bands

LINE_STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")


def loss_figure(results: Sequence[Result], title: str) -> bytes:
    """A PNG: geometric mean over problems of each method, with 95 % bootstrap bands.

    Lines differ in style and marker as well as in colour. Learned methods are drawn thicker.
    """
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    handles = []
    for i, result in enumerate(results):
        mean, low, high = log_mean_bands(result.losses)
        steps = np.arange(len(mean))
        (line,) = axes.plot(
            steps,
            mean,
            LINE_STYLES[i % len(LINE_STYLES)],
            marker=MARKERS[i % len(MARKERS)],
            markevery=(i % 7, max(1, len(mean) // 10)),
            markersize=4,
            linewidth=2.2 if result.method.learned else 1.2,
        )
        handles.append(line)
        axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("loss, geometric mean over problems")
    axes.set_title(title, fontsize=10)
    axes.grid(True, which="major", alpha=0.3)
    # Names given here rather than as labels: a path may start with _ or look like TeX.
    names = [result.method.name for result in results]
    legend = figure.legend(handles, names, fontsize=8, loc="outside right upper")
    for text in legend.get_texts():
        text.set_parse_math(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
