"""Write the results of the study of section 5.1: a table, a picture, and JSON."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy import stats

from metaopt.evaluation.figure import usual_style
from metaopt.storage import write_atomically
from studies.optimizers.image_runs import Run
from studies.optimizers.mnist import CONTROLS, Cell, Results, final
from studies.report import markdown, write_json, write_text

TELEPORTS = ("eq. 79", "rescaling", "rescaling, buffers transported")
SIDES = ("train", "test")
STYLES: dict[str, Literal["-", "--", "-.", ":"]] = {
    "no teleport": "--",
    "reset alone": ":",
    "eq. 79": "-",
    "rescaling": "-.",
}
FAINT, BAND = 0.4, 0.12  # opacity of the test losses, and of their deviations


def gain(cell: Cell, variant: str) -> tuple[float, float, float, str]:
    """(mean, low, high) of what the variant takes off the training loss, and the control.

    Relative to the best of its controls, by mean, in pairs of equal seeds, with a 95 % interval of
    Student's t; a random g of the same size is a control too.
    """
    names = [*CONTROLS, f"{variant.split(',')[0]}, random g"]
    controls = {name: final(cell.variants[name]) for name in names if name in cell.variants}
    best = min(controls, key=lambda name: float(np.mean(np.nan_to_num(controls[name], nan=np.inf))))
    ours, theirs = np.array(final(cell.variants[variant])), np.array(controls[best])
    relative = 1 - ours / theirs
    mean = float(relative.mean())
    if len(relative) < 2:
        return mean, float("nan"), float("nan"), best
    low, high = stats.t.interval(
        0.95, len(relative) - 1, loc=mean, scale=max(stats.sem(relative), 1e-300)
    )
    return mean, float(low), float(high), best


def teleport_epoch_fraction(cell: Cell) -> float:
    """Seconds of the teleport phase over those of a full epoch, the costlier action's."""
    phases = [
        float(np.median([ran.teleport_seconds for ran in cell.variants[name]]))
        for name in TELEPORTS
        if name in cell.variants
    ]
    return max(phases) / cell.epoch_seconds()


def report(out: Path, results: Results) -> str:
    """Write everything; return the table."""
    rows = []
    for setting, cells in results.items():
        for name, cell in cells.items():
            for variant, runs in cell.variants.items():
                rows.append(_row(setting, name, cell, variant, runs))
    headings = [
        "setting", "optimizer", "rate", "variant", "training loss", "test loss", "accuracy %",
        "gain over the best control %", "that control", "gradient norm² before -> after",
        "moved", "invariance error", "reverted",
    ]  # fmt: skip
    table = markdown(headings, rows)
    write_text(out / "tables" / "mnist.md", table)
    write_atomically(out / "mnist.png", picture(results))
    write_json(out / "mnist.json", _facts(results))
    return table


def _row(setting: str, name: str, cell: Cell, variant: str, runs: Sequence[Run]) -> list[str]:
    moved = [ran.gradient_norms for ran in runs if ran.gradient_norms is not None]
    norms = " -> ".join(f"{np.median(side):.3g}" for side in zip(*moved, strict=True))
    gained, control = "", ""
    if variant in TELEPORTS:
        mean, low, high, control = gain(cell, variant)
        gained = f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    return [
        setting, name, f"{cell.plan.rate:g}", variant,
        _spread(final(runs)), _spread([ran.test[-1] for ran in runs]),
        _spread([100 * ran.accuracy[-1] for ran in runs]), gained, control, norms,
        f"{np.median([ran.moved for ran in runs]):.2g}" if moved else "",
        f"{max(ran.defect for ran in runs):.1e}" if moved else "",
        str(sum(ran.undone for ran in runs)) if moved else "",
    ]  # fmt: skip


def _spread(values: Sequence[float]) -> str:
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return f"{np.mean(values):.4g} ± {deviation:.2g}"


def _facts(results: Results) -> dict[str, Any]:
    return {
        setting: {
            name: {
                "rate": cell.plan.rate,
                "epoch_seconds": cell.epoch_seconds(),
                "teleport_epoch_fraction": teleport_epoch_fraction(cell),
                "gains": {v: gain(cell, v) for v in TELEPORTS if v in cell.variants},
                "runs": {v: [asdict(ran) for ran in runs] for v, runs in cell.variants.items()},
            }
            for name, cell in cells.items()
        }
        for setting, cells in results.items()
    }


@usual_style()
def picture(results: Results) -> bytes:
    """A PNG: a row a setting and axis, a column an optimizer; means, and deviations of the test."""
    names = list(next(iter(results.values())))
    rows = [(setting, axis) for setting in results for axis in ("epoch", "seconds")]
    figure = Figure(
        figsize=(3 * len(names), 2.6 * len(rows)), layout="constrained", facecolor="white"
    )
    panels = figure.subplots(len(rows), len(names), squeeze=False)
    for (setting, axis), line in zip(rows, panels, strict=True):
        for name, axes in zip(names, line, strict=True):
            _panel(axes, results[setting][name], axis)
            axes.set_title(f"{name}, {setting}", fontsize=9)
    shown = {v for cells in results.values() for cell in cells.values() for v in cell.variants}
    figure.legend(
        handles=legend_handles(shown), loc="outside lower center", ncols=len(STYLES) + 2, fontsize=8
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def legend_handles(variants: Collection[str]) -> list[Artist]:
    """What the legend of the picture shows: each variant that some panel has, and the test losses.

    Args:
        variants: names of the variants that were run; those without a style are not drawn.
    """
    handles: list[Artist] = [
        Line2D([], [], linestyle=style, color=f"C{index}", marker=".", label=variant)
        for index, (variant, style) in enumerate(STYLES.items())
        if variant in variants
    ]
    handles.append(Line2D([], [], color="black", alpha=FAINT, label="faint: test loss"))
    handles.append(Patch(color="black", alpha=BAND, linewidth=0, label="its standard deviation"))
    return handles


def _panel(axes: Axes, cell: Cell, axis: str) -> None:
    for index, (variant, style) in enumerate(STYLES.items()):
        if variant not in cell.variants:
            continue
        runs = cell.variants[variant]
        train, test = (
            np.array([getattr(r, side) for r in runs])[:, 1:] for side in ("train", "test")
        )
        times = np.array([ran.seconds for ran in runs])[:, 1:].mean(axis=0)
        x = times if axis == "seconds" else np.arange(1, train.shape[1] + 1)
        colour = f"C{index}"
        axes.plot(x, train.mean(axis=0), style, color=colour, label=variant, marker=".")
        middle, spread = test.mean(axis=0), test.std(axis=0)
        axes.plot(x, middle, style, color=colour, alpha=FAINT)
        axes.fill_between(
            x, middle - spread, middle + spread, color=colour, alpha=BAND, linewidth=0
        )
    axes.set_yscale("log")
    axes.set_xlabel(axis, fontsize=8)
    axes.tick_params(labelsize=7, which="both")
