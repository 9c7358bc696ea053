"""Write the results of a study: Markdown tables, JSON, and bands over meta-seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaopt.evaluation.figure import Band
from metaopt.storage import write_atomically


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Make a Markdown table.

    Args:
        headings: one a column.
        rows: cells of each row, as text; a ``|`` in them is escaped.
    """
    lines = [headings, ["---"] * len(headings), *rows]
    safe = [[cell.replace("|", r"\|") for cell in cells] for cells in lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in safe) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a file of text in UTF-8, whole or not at all; its folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, in which a number that is not finite is null."""
    write_text(path, json.dumps(_plain(value), indent=1) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value


def over_seeds(label: str, means: Sequence[NDArray[np.float64]], thick: bool = True) -> Band:
    """Make the band of a figure: the median over meta-seeds, between the best and the worst one.

    Args:
        label: what the legend says.
        means: the curve of each meta-seed; NaN counts as infinite.
        thick: whether the line is drawn thick.
    """
    stacked = np.stack(means)
    stacked = np.where(np.isfinite(stacked), stacked, np.inf)
    return Band(label, np.median(stacked, axis=0), stacked.min(axis=0), stacked.max(axis=0), thick)
