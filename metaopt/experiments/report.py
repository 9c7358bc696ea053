"""What a study leaves: Markdown tables, JSON, and figures of loss against step."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from metaopt.evaluation.figure import LINE_STYLES, MARKERS
from metaopt.learned.checkpoint import write_atomically


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def write_text(path: Path, text: str) -> None:
    """UTF-8, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Indented; a number that is not finite is null."""
    write_text(path, json.dumps(_plain(value), indent=1) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value


class Band(NamedTuple):
    """A curve with the range around it, each ``(steps + 1,)``."""

    label: str
    middle: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    thick: bool = False


def over_seeds(label: str, means: Sequence[NDArray[np.float64]], thick: bool = True) -> Band:
    """The median over meta-seeds, between the best and the worst of them."""
    stacked = np.stack(means)
    stacked = np.where(np.isfinite(stacked), stacked, np.inf)
    return Band(label, np.median(stacked, axis=0), stacked.min(axis=0), stacked.max(axis=0), thick)


def band_figure(bands: Sequence[Band], title: str) -> bytes:
    """A PNG of losses on a log axis; lines differ in style and marker as well as in colour."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for i, band in enumerate(bands):
        steps = np.arange(len(band.middle))
        finite = [np.where(np.isfinite(c), c, np.nan) for c in (band.middle, band.low, band.high)]
        (line,) = axes.plot(
            steps,
            finite[0],
            LINE_STYLES[i % len(LINE_STYLES)],
            marker=MARKERS[i % len(MARKERS)],
            markevery=(i % 7, max(1, len(steps) // 10)),
            markersize=4,
            linewidth=2.2 if band.thick else 1.2,
            label=band.label,
        )
        axes.fill_between(
            steps, finite[1], finite[2], color=line.get_color(), alpha=0.15, linewidth=0
        )
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("loss, geometric mean over problems")
    axes.set_title(title, fontsize=10)
    axes.grid(True, which="major", alpha=0.3)
    figure.legend(fontsize=8, loc="outside right upper")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
