"""Scores, tables and the figure of the zoo.

A network whose best known loss is above 1e-9 of its start counts by its loss minus that best, at
least 1e-6 of the start. The others count by their loss, at least 1e-12 of the start. A cell's score
is the geometric mean over its networks, over the start.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from studies.report import markdown
from studies.zoo.cells import Cell
from studies.zoo.rivals import Contender

Kept = Mapping[str, Any]
VANISHES, FLOOR, EXCESS = 1e-9, 1e-12, 1e-6
TIE = 1.0 + 1e-9
STEPS = ("30", "100")


def read(out: Path, cells: Iterable[Cell]) -> dict[Cell, Kept]:
    """Return what was measured of the cells that are done.

    Args:
        out: the folder of the study.
        cells: those to look for.
    """
    found = {}
    for cell in cells:
        path = out / "cells" / f"{cell.name}.json"
        kept = json.loads(path.read_text()) if path.exists() else {}
        if "best known" in kept:
            found[cell] = kept
    return found


def best_known(kept: Kept) -> NDArray[np.float64]:
    """Return the lowest loss of any run on each network of a cell."""
    runs = [
        own["lowest"] for name, settings in kept.items() if name != "best known"
        for own in settings.values()
    ]  # fmt: skip
    lowest: NDArray[np.float64] = _numbers([*runs, kept["best known"]]).min(axis=0)
    return lowest


def score(kept: Kept, run: Kept, step: str) -> float:
    """Return the score of a run at a step: see the top of this module."""
    start = _numbers(run["at"]["0"])
    return _counted(_numbers(run["at"][step]) / start, best_known(kept) / start)


def least_score(kept: Kept, run: Kept) -> float:
    """Return the lowest score that there is: that of the best known losses.

    Args:
        kept: what was measured of the cell.
        run: any of its runs.
    """
    best = best_known(kept) / _numbers(run["at"]["0"])
    return _counted(best, best)


def _counted(losses: NDArray[np.float64], best: NDArray[np.float64]) -> float:
    counted = np.where(
        best > VANISHES, np.maximum(losses - best, EXCESS), np.maximum(losses, FLOOR)
    )
    return float(np.exp(np.log(counted).mean()))


def best_setting(kept: Kept, name: str, step: str) -> float:
    """Return the score of a method at the best of its settings for this cell and step."""
    return min(score(kept, run, step) for run in kept[name].values())


def compared(
    measured: Mapping[Cell, Kept], contenders: Mapping[str, Contender], learned: str
) -> list[dict[str, Any]]:
    """Return the scores of a learned optimizer and of the best rival, for each cell.

    Args:
        measured: what was measured.
        contenders: the methods.
        learned: the name of the learned optimizer.
    """
    rows = []
    for cell, kept in measured.items():
        row: dict[str, Any] = {"cell": cell}
        for step in STEPS:
            rivals = {
                name: best_setting(kept, name, step)
                for name, own in contenders.items() if own.rival and name in kept
            }  # fmt: skip
            name = min(rivals, key=lambda one: rivals[one])
            row[step] = (best_setting(kept, learned, step), rivals[name], name)
        row["least"] = least_score(kept, next(iter(kept[learned].values())))
        rows.append(row)
    return rows


def summary(
    measured: Mapping[Cell, Kept], contenders: Mapping[str, Contender], learned: Sequence[str]
) -> str:
    """Return the table with a line for each learned optimizer.

    Args:
        measured: what was measured.
        contenders: the methods.
        learned: the names of the learned optimizers.
    """
    lines = []
    for name in learned:
        rows = compared(measured, contenders, name)
        cells: list[str] = [name]
        for step in STEPS:
            won = [own <= rival * TIE for own, rival, _ in (row[step] for row in rows)]
            cells.append(f"{100 * np.mean(won):.1f} % of {len(won)}")
        ratios = [own / rival for own, rival, _ in (row["100"] for row in rows)]
        cells.append(_mean_of_decided(ratios))
        cells.append(_mean_of_decided([row["least"] / row["100"][1] for row in rows]))
        cells.append(f"{max(ratios):.2g}")
        above = sum(next(iter(kept[name].values()))["above"] for kept in measured.values())
        networks = sum(len(kept["best known"]) for kept in measured.values())
        cells.append(f"{100 * above / networks:.2f} %")
        cells.append(_seconds(measured, contenders, name))
        lines.append(cells)
    return markdown(
        ["optimizer", "at or below the best rival, step 30", "step 100",
         "its loss over the best rival's, step 100", "the least that this could be",
         "largest ratio of a cell",
         "networks ever above their start", "seconds to 1e-6 over the best rival's, median"],
        lines,
    )  # fmt: skip


def _mean_of_decided(ratios: Sequence[float]) -> str:
    """The geometric mean of the ratios that are no tie."""
    decided = [ratio for ratio in ratios if abs(np.log(ratio)) > 1e-6] or [1.0]
    return f"{np.exp(np.mean(np.log(decided))):.1e}"


def methods(measured: Mapping[Cell, Kept], contenders: Mapping[str, Contender]) -> str:
    """Return the table with a line for each method: geometric means over cells.

    Args:
        measured: what was measured.
        contenders: the methods.
    """
    lines = []
    for name in contenders:
        having = [kept for kept in measured.values() if name in kept]
        if not having:
            continue
        best: Counter[str] = Counter()
        for kept in having:
            best[min(kept[name], key=lambda own: score(kept, kept[name][own], "100"))] += 1
        means = [
            np.exp(np.mean([np.log(best_setting(kept, name, step)) for kept in having]))
            for step in ("10", *STEPS)
        ]
        seconds = np.mean([np.mean([r["seconds"] for r in k[name].values()]) for k in having])
        lines.append(
            [name, str(len(having)), *(f"{mean:.1e}" for mean in means), f"{seconds:.2f}",
             best.most_common(1)[0][0] or "–"]
        )  # fmt: skip
    return markdown(
        ["method", "cells", "step 10", "step 30", "step 100", "seconds for 100 steps",
         "most frequent best setting"],
        lines,
    )  # fmt: skip


def lost(measured: Mapping[Cell, Kept], contenders: Mapping[str, Contender], learned: str) -> str:
    """Return the table of the cells where a rival is ahead.

    Args:
        measured: what was measured.
        contenders: the methods.
        learned: the name of the learned optimizer.
    """
    lines = [
        [row["cell"].name, step, f"{own:.1e}", f"{rival:.1e}", name]
        for row in compared(measured, contenders, learned)
        for step in STEPS
        for own, rival, name in [row[step]]
        if own > rival * TIE
    ]
    return markdown(["cell", "step", learned, "best rival", "which"], lines)


def _seconds(
    measured: Mapping[Cell, Kept], contenders: Mapping[str, Contender], learned: str
) -> str:
    ratios = []
    for kept in measured.values():

        def fastest(name: str, kept: Kept = kept) -> float:
            runs = [_numbers(run["seconds_to_goal"]) for run in kept[name].values()]
            return float(np.min([np.median(run) for run in runs]))

        own = fastest(learned)
        rival = min(fastest(n) for n, c in contenders.items() if c.rival and n in kept)
        if np.isfinite(own) or np.isfinite(rival):
            ratios.append(own / rival if np.isfinite(rival) else 0.0)
    return f"{np.median(ratios):.2g} of {len(ratios)}" if ratios else "–"


def _numbers(values: Any) -> NDArray[np.float64]:
    """Numbers, with null for what was not finite."""
    return np.nan_to_num(np.array(values, dtype=np.float64), nan=np.inf, posinf=np.inf)
