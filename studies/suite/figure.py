"""The figures of the suite: one panel a task, the smoothed training loss against steps or time."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from metaopt.evaluation.figure import usual_style
from metaopt.extras import extra
from metaopt.tasks.suite import SUITE
from studies.suite.protocol import BASELINE, SETTINGS
from studies.suite.reference import Reference
from studies.suite.runs import LAST
from studies.suite.speedup import smoothed

COLOURS = ("#0b3954", "#7a7a7a", "#c8553d", "#2a9d8f", "#b5838d", "#6a4c93", "#e09f3e", "#1982c4")
COLUMNS = 5


def suite_figure(results: Reference, seconds: bool = False) -> bytes:
    """Return a PNG: the mean over seeds for each method, one panel a task.

    Args:
        results: what is compared; methods that are no baselines are drawn thick.
        seconds: whether the losses stand against the processor's seconds, of which each step takes
            as many, instead of against steps.
    """
    with extra("report"):
        from matplotlib import pyplot as plt
    tasks = results.tasks
    rows = -(-len(tasks) // COLUMNS)
    with usual_style():
        figure, axes = plt.subplots(rows, COLUMNS, figsize=(13, 0.6 + 2.6 * rows), squeeze=False)
        for axis, task in zip(axes.flat, tasks, strict=False):
            for place, method in enumerate(results.methods):
                runs = results.of(task, method)
                curve = np.mean([smoothed(run["curve"]) for run in runs], axis=0)
                look: dict[str, Any] = {"color": COLOURS[place % len(COLOURS)], "label": method}
                whole = float(np.mean([run["seconds" if seconds else "steps"] for run in runs]))
                done = np.arange(LAST, LAST + len(curve)) * whole / len(runs[0]["curve"])
                width = 1.2 if method in SETTINGS else 2.4
                axis.semilogy(done, curve, linewidth=width, **look)
                if method == BASELINE and np.isfinite(curve[-1]):
                    axis.axhline(curve[-1], color=look["color"], linewidth=0.6, linestyle=":")
                    start = float(np.nanmax(curve[np.isfinite(curve)]))
                    axis.set_ylim(float(curve.min()) * 0.7, start * 1.3)
            axis.set_title(f"{task}{', held out' if SUITE[task].held_out else ''}", fontsize=9)
        for axis in axes[-1]:
            axis.set_xlabel("seconds" if seconds else "step")
        for axis in axes[:, 0]:
            axis.set_ylabel("training loss")
        for axis in list(axes.flat)[len(tasks) :]:
            axis.set_visible(False)
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper center", ncols=len(labels), fontsize=8)
        figure.tight_layout(rect=(0, 0, 1, 0.95))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=100)
        plt.close(figure)
    return buffer.getvalue()
