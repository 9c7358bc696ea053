"""The tables of the unusual problems."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from studies.report import markdown
from studies.suite.runs import Record
from studies.suite.speedup import losses_of, smoothed, speed_up, with_interval
from studies.untuned.report import Runs, grouped, heading, highest_loss

PARTS = 60
"""Of a run; the mean losses of these are compared, five at a time."""

ADAMW = "adamw_cosine"

ADAMW_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
MUON_RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)

RIVALS = {
    ADAMW: [f"{ADAMW}@{rate:g}" for rate in ADAMW_RATES],
    "muon": [f"muon@{rate:g}" for rate in MUON_RATES],
}
"""The runs of each rival. Its best of them on a problem, by the final training loss, counts."""


def parts(record: Record) -> list[float]:
    """Return the mean training losses of the parts of a run; from a loss that is not finite on inf.

    Args:
        record: what was kept of the run.
    """
    return [float(part.mean()) for part in np.array_split(losses_of(record["curve"]), PARTS)]


def final(own: Sequence[Record]) -> float:
    """Return the mean training loss at the end of runs.

    Args:
        own: the runs.
    """
    return float(np.mean([smoothed(parts(record))[-1] for record in own]))


def tables(records: Sequence[Record], unseen: Collection[str]) -> dict[str, str]:
    """Return all tables by name.

    Args:
        records: the runs.
        unseen: the names of the problems that nothing was chosen by.
    """
    runs = grouped(records)
    problems = list(dict.fromkeys(problem for problem, _ in runs))
    ordinary = {name for own in RIVALS.values() for name in own}
    others = [name for where, name in runs if where == problems[0] and name not in ordinary]
    columns = {problem: _columns(runs, problem, others) for problem in problems}
    parts = {
        "seen": [problem for problem in problems if problem not in unseen],
        "unseen": [problem for problem in problems if problem in unseen],
    }
    return {
        "unusual": _summary(columns, parts),
        **{f"unusual_{part}": _losses(columns, own) for part, own in parts.items()},
        **{f"unusual_{part}_speedups": _each(columns, own) for part, own in parts.items()},
    }


def _columns(runs: Runs, problem: str, others: Sequence[str]) -> dict[str, list[Record]]:
    """The runs of a problem by method; those of a rival at its best."""
    found = {
        rival: min((runs[problem, name] for name in own), key=final)
        for rival, own in RIVALS.items()
    }
    return found | {name: runs[problem, name] for name in others}


Columns = dict[str, dict[str, list[Record]]]


def _speed_ups(columns: Columns, problems: Sequence[str], method: str) -> NDArray[np.float64]:
    """``(problems, seeds)``, over AdamW on the same seed."""
    return np.array(
        [
            [
                speed_up(parts(own), parts(other))
                for own, other in zip(columns[name][method], columns[name][ADAMW], strict=True)
            ]
            for name in problems
        ]
    )


def _summary(columns: Columns, halves: dict[str, list[str]]) -> str:
    methods = list(next(iter(columns.values())))
    lines = []
    for method in methods:
        line = [heading(method)]
        for problems in halves.values():
            speed_ups = with_interval(_speed_ups(columns, problems, method))
            below = sum(
                final(columns[name][method]) <= final(columns[name][ADAMW]) for name in problems
            )
            line += [str(speed_ups), f"{below} of {len(problems)}"]
        lines.append(line)
    names = [name for half in halves for name in (f"speed-up, {half}", f"not above AdamW, {half}")]
    return markdown(["optimizer", *names], lines)


def _losses(columns: Columns, problems: Sequence[str]) -> str:
    """Final training losses, the lowest in bold, with the rate of rivals and the highest loss."""
    lines = []
    for name in problems:
        losses = {method: final(own) for method, own in columns[name].items()}
        cells = []
        for method, loss in losses.items():
            text = f"**{loss:.4g}**" if loss == min(losses.values()) else f"{loss:.4g}"
            own = columns[name][method]
            rate = own[0]["method"].partition("@")[2]
            cells.append(f"{text} ({rate})" if method in RIVALS else text)
        highest = [highest_loss(own) for m, own in columns[name].items() if m not in RIVALS]
        lines.append([name, *cells, *highest])
    methods = list(columns[problems[0]])
    over = [f"{heading(m)}, highest loss over the start's" for m in methods if m not in RIVALS]
    return markdown(["problem", *map(heading, methods), *over], lines)


def _each(columns: Columns, problems: Sequence[str]) -> str:
    methods = [method for method in columns[problems[0]] if method != ADAMW]
    lines = [
        [name, *(f"{_geometric(_speed_ups(columns, [name], m)):.2f}" for m in methods)]
        for name in problems
    ]
    return markdown(["problem", *map(heading, methods)], lines)


def _geometric(values: NDArray[np.float64]) -> float:
    return float(np.exp(np.log(values).mean()))
