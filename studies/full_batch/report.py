"""Tables and the figure of the real problems."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metaopt.evaluation.figure import usual_style
from metaopt.evaluation.styles import STYLES
from metaopt.extras import extra
from studies.full_batch import runs
from studies.full_batch.runs import Run
from studies.report import markdown

Runs = dict[tuple[str, str], list[Run]]
"""Runs on test seeds, by problem and method."""


def grouped(reported: Sequence[Run]) -> Runs:
    """Return runs by problem and method, in order."""
    found: Runs = {}
    for own in reported:
        found.setdefault((own["problem"], own["method"]), []).append(own)
    return found


def all_methods(measured: Runs, marks: Sequence[int]) -> str:
    """Return the table with a line for each problem and method.

    A cell is the geometric mean over seeds, and the factor that its standard deviation is.

    Args:
        measured: the runs.
        marks: the steps that are shown.
    """
    lines = []
    for (problem, name), own in measured.items():
        seconds = np.mean([run["seconds"][-1] for run in own])
        lines.append(
            [problem, name, own[0]["setting"] or "–", *(_spread(own, runs.train, t) for t in marks),
             *(_spread(own, runs.test, t) for t in marks[1:]), f"{seconds:.1f}"]
        )  # fmt: skip
    return markdown(
        ["problem", "method", "setting", *(f"loss, step {t}" for t in marks),
         *(f"test, step {t}" for t in marks[1:]), "seconds"],
        lines,
    )  # fmt: skip


def compared(measured: Runs, marks: Sequence[int], learned: str, others: Sequence[str]) -> str:
    """Return the table of the learned optimizer beside the best baseline; where it loses is first.

    Args:
        measured: the runs.
        marks: the steps that are shown.
        learned: the learned optimizer.
        others: other learned ones, which are no baselines.
    """
    lines = []
    for problem in dict.fromkeys(problem for problem, _ in measured):
        rivals = [n for p, n in measured if p == problem and n not in (learned, *others)]
        cells, ratio = [problem], math.nan
        for kind, steps in ((runs.train, marks[1:]), (runs.test, marks[-1:])):
            for step in steps:
                ours = _mean(measured[problem, learned], kind, step)
                best = min(rivals, key=lambda n: _mean(measured[problem, n], kind, step))
                rival = _mean(measured[problem, best], kind, step)
                cells.append(f"{ours:.1e} / {rival:.1e} ({best})")
                if kind is runs.train:
                    ratio = ours / rival
        lines.append((ratio, cells))
    lines.sort(key=lambda line: -line[0])
    return markdown(
        ["problem", *(f"loss, step {t}" for t in marks[1:]), f"test, step {marks[-1]}"],
        [cells for _, cells in lines],
    )


def figure(measured: Runs, learned: str) -> bytes:
    """Return a PNG: of each problem, the loss against steps, and below against seconds.

    Args:
        measured: the runs; a line is the geometric mean over seeds.
        learned: the name of the learned optimizer, which is drawn thick.
    """
    with extra("report"):
        from matplotlib import pyplot as plt
    problems = list(dict.fromkeys(problem for problem, _ in measured))
    columns = min(3, len(problems))
    rows = -(-len(problems) // columns)
    with usual_style():
        drawing, axes = plt.subplots(
            2 * rows,
            columns,
            figsize=(3.6 * columns, 5 * rows),
            squeeze=False,
            layout="constrained",
        )
        for index in range(rows * columns):
            row, column = divmod(index, columns)
            by_step, by_second = axes[2 * row][column], axes[2 * row + 1][column]
            if index >= len(problems):
                by_step.axis("off"), by_second.axis("off")
                continue
            for (problem, name), own in measured.items():
                if problem == problems[index]:
                    losses, seconds = _curves(own)
                    look: dict[str, Any] = STYLES[name].line if name in STYLES else {}
                    look = {key: value for key, value in look.items() if key != "marker"}
                    look["linewidth"] = 2.5 if name == learned else 1.2
                    by_step.semilogy(losses, label=name, **look)
                    by_second.semilogy(seconds[1:], losses[1:], **look)
            by_second.set_xscale("log")
            by_step.set_title(problems[index])
            by_step.set_xlabel("step")
            by_second.set_xlabel("seconds")
            if not column:
                by_step.set_ylabel("loss")
                by_second.set_ylabel("loss")
        names = axes[0][0].get_legend_handles_labels()
        drawing.legend(*names, loc="outside upper center", ncols=4, fontsize=8)
        buffer = io.BytesIO()
        drawing.savefig(buffer, format="png", dpi=110)
        plt.close(drawing)
    return buffer.getvalue()


def _curves(own: Sequence[Run]) -> tuple[Any, Any]:
    """Geometric mean loss and mean seconds, as far as the shortest run goes."""
    length = min(len(run["train"]) for run in own)
    losses = np.array([[runs.train(run, t) for t in range(length)] for run in own])
    seconds = np.array([run["seconds"][:length] for run in own])
    return np.exp(np.log(np.maximum(losses, runs.LOWEST)).mean(axis=0)), seconds.mean(axis=0)


def _values(own: Sequence[Run], kind: Callable[[Run, int], float], step: int) -> Tensor:
    return torch.tensor([kind(run, step) for run in own], dtype=torch.float64)


def _mean(own: Sequence[Run], kind: Callable[[Run, int], float], step: int) -> float:
    return math.exp(min(runs.log_mean(_values(own, kind, step)), 700.0))


def _spread(own: Sequence[Run], kind: Callable[[Run, int], float], step: int) -> str:
    values = _values(own, kind, step)
    if not values.isfinite().all():
        return f"not finite in {int((~values.isfinite()).sum())}"
    factor = values.clamp(min=runs.LOWEST).log().std(unbiased=len(values) > 1).exp()
    return f"{_mean(own, kind, step):.1e} ×/÷ {factor:.2g}"
