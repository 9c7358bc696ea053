"""The tables of the suite."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from metaopt.tasks.suite import SUITE
from studies.report import markdown
from studies.suite.protocol import BASELINE, CONSTANT, SETTINGS, Setting
from studies.suite.reference import Reference
from studies.suite.runs import Record
from studies.suite.speedup import Numbers, reached, speed_up, with_interval

WORSE = 1.05
"""Times the baseline's test loss, above which a task counts as worse."""


def tables(results: Reference) -> dict[str, str]:
    """Return all tables by name.

    Args:
        results: what is compared.
    """
    return {
        "suite": summary(results),
        "suite_speedups": speed_ups(results),
        "suite_test": test_losses(results),
        "suite_training": training_losses(results),
        "suite_settings": settings(results),
    }


def summary(results: Reference) -> str:
    """Return the table with a line for each method.

    Args:
        results: what is compared.
    """
    halves = {
        "all": results.tasks,
        "may be trained on": [t for t in results.tasks if not SUITE[t].held_out],
        "held out": [t for t in results.tasks if SUITE[t].held_out],
    }
    lines = []
    for method in results.methods:
        cells = [method]
        cells += [_mean(results, own, method, BASELINE) for own in halves.values()]
        cells.append(_mean(results, results.tasks, method, CONSTANT))
        cells.append(
            _count(sum(_reached(results, task, method) for task in results.tasks), results)
        )
        cells.append(_count(sum(_worse(results, task, method) for task in results.tasks), results))
        runs = [r for task in results.tasks for r in results.of(task, method)]
        cells.append(f"{max(_number(r['highest']) for r in runs):.2g}")
        seconds = sum(_over_seeds(results.of(task, method), "seconds") for task in results.tasks)
        cells.append(f"{seconds:.0f}")
        lines.append(cells)
    return markdown(
        ["optimizer", *(f"speed-up, {half}" for half in halves), "over constant AdamW",
         "touches AdamW's final loss", f"test loss above {WORSE:g} × AdamW's",
         "highest loss over the start's", "seconds for a run of each"],
        lines,
    )  # fmt: skip


def speed_ups(results: Reference) -> str:
    """Return the table of the speed-ups for each task: geometric means over seeds.

    Args:
        results: what is compared.
    """
    lines = [
        [_task(task), *(f"{_geometric(_ups(results, [task], m, BASELINE)):.2f}" for m in methods)]
        for methods in [[m for m in results.methods if m != BASELINE]]
        for task in results.tasks
    ]
    return markdown(["task", *(m for m in results.methods if m != BASELINE)], lines)


def test_losses(results: Reference) -> str:
    """Return the table of test losses and accuracies: means over seeds.

    Args:
        results: what is compared.
    """
    lines = []
    for task in results.tasks:
        runs = {method: results.of(task, method) for method in results.methods}
        best = min(_over_seeds(own, "loss") for own in runs.values())
        cells = []
        for own in runs.values():
            loss = _over_seeds(own, "loss")
            mark = "**" if loss == best else ""
            accuracy = (
                f" ({100 * _over_seeds(own, 'accuracy'):.1f} %)"
                if own[0]["accuracy"] is not None
                else ""
            )
            cells.append(f"{mark}{loss:.4g}{mark}{accuracy}")
        lines.append([_task(task), *cells])
    return markdown(["task", *results.methods], lines)


def training_losses(results: Reference) -> str:
    """Return the table of training losses, the mean over the last steps and the seeds.

    Args:
        results: what is compared.
    """
    lines = []
    for task in results.tasks:
        losses = [_over_seeds(results.of(task, m), "train") for m in results.methods]
        marks = ["**" if loss == min(losses) else "" for loss in losses]
        cells = [f"{mark}{loss:.4g}{mark}" for mark, loss in zip(marks, losses, strict=True)]
        lines.append([_task(task), *cells])
    return markdown(["task", *results.methods], lines)


def settings(results: Reference) -> str:
    """Return the table of the rates (and weight decays) that were chosen.

    A rate that is the first or the last of those tried is marked.

    Args:
        results: what is compared.
    """
    lines = []
    for task in results.tasks:
        runs = [results.of(task, method)[0] for method in results.methods]
        lines.append([_task(task), *map(_chosen, runs)])
    return markdown(["task", *results.methods], lines)


def _chosen(run: Record) -> str:
    tried = [own.rate for own in SETTINGS.get(run["method"], ())]
    mark = " (end)" if run["rate"] in (*tried[:1], *tried[-1:]) else ""
    return f"{Setting(run['rate'], run['decay'])}{mark}"


def _task(name: str) -> str:
    return f"{name} (held out)" if SUITE[name].held_out else name


def _ups(results: Reference, tasks: Sequence[str], method: str, baseline: str) -> Numbers:
    """Speed-ups ``(tasks, seeds)``."""
    rows = []
    for task in tasks:
        others = {record["seed"]: record["curve"] for record in results.of(task, baseline)}
        own = results.of(task, method)
        rows.append([speed_up(run["curve"], others[run["seed"]]) for run in own])
    return np.array(rows)


def _mean(results: Reference, tasks: Sequence[str], method: str, baseline: str) -> str:
    if method == baseline:
        return "1"
    if not tasks or baseline not in results.methods:
        return "–"
    return str(with_interval(_ups(results, tasks, method, baseline)))


def _geometric(values: Numbers) -> float:
    return float(np.exp(np.log(values).mean()))


def _reached(results: Reference, task: str, method: str) -> bool:
    """Whether most seeds get to the baseline's final loss."""
    others = {record["seed"]: record["curve"] for record in results.of(task, BASELINE)}
    got = [reached(run["curve"], others[run["seed"]]) for run in results.of(task, method)]
    return 2 * sum(got) > len(got)


def _worse(results: Reference, task: str, method: str) -> bool:
    own = _over_seeds(results.of(task, method), "loss")
    return own > WORSE * _over_seeds(results.of(task, BASELINE), "loss")


def _count(number: int, results: Reference) -> str:
    return f"{number} of {len(results.tasks)}"


def _number(value: float | None) -> float:
    return math.inf if value is None else value


def _over_seeds(runs: Sequence[Record], name: str) -> float:
    return float(np.mean([_number(run[name]) for run in runs]))
