"""The tables of the four networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from studies.report import markdown
from studies.suite.runs import Record

ADAMW = {f"adamw@{rate:g}": rate for rate in (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)}
"""AdamW at five constant rates, by the name of the method."""

USUAL = "adamw@0.001"
"""AdamW at the rate that torch has."""

BEST = "adamw, best of five"

Runs = dict[tuple[str, str], list[Record]]
"""Runs by network and method, one a seed."""

Cell = Callable[[Sequence[Record]], str]
"""What a table says of the runs of a method on a network."""


def grouped(records: Sequence[Record]) -> Runs:
    """Return runs by network and method, in order.

    Args:
        records: the runs.
    """
    found: Runs = {}
    for record in records:
        found.setdefault((record["network"], record["method"]), []).append(record)
    return found


def tables(records: Sequence[Record]) -> dict[str, str]:
    """Return all tables by name. A cell is the mean over seeds; of the highest loss, the highest.

    Args:
        records: the runs.
    """
    runs = grouped(records)
    return {
        "untuned": _losses(runs, "train"),
        "untuned_test": _losses(runs, "loss"),
        "untuned_highest": _table(runs, highest_loss),
        "untuned_seconds": _table(runs, lambda own: f"{_mean(own, 'seconds'):.0f}"),
        "untuned_rates": _rates(runs),
    }


def best(runs: Runs, network: str) -> str:
    """Return the name of AdamW at the rate of the lowest final training loss.

    Args:
        runs: the runs.
        network: the network.
    """
    return min(ADAMW, key=lambda name: _mean(runs[network, name], "train"))


def _columns(runs: Runs, network: str) -> dict[str, list[Record]]:
    """The runs of a network by the heading of their column."""
    others = [method for where, method in runs if where == network and method not in ADAMW]
    return {
        USUAL: runs[network, USUAL],
        BEST: runs[network, best(runs, network)],
        **{method: runs[network, method] for method in others},
    }


def _losses(runs: Runs, what: str) -> str:
    """A table of losses, the lowest in bold, with the rate of the best AdamW."""
    lines = []
    headings: list[str] = []
    for network in dict.fromkeys(network for network, _ in runs):
        columns = _columns(runs, network)
        headings = list(columns)
        losses = {name: _mean(own, what) for name, own in columns.items()}
        cells = {name: f"{loss:.4g}" for name, loss in losses.items()}
        for name, loss in losses.items():
            if loss == min(losses.values()):
                cells[name] = f"**{cells[name]}**"
        cells[BEST] += f" ({ADAMW[best(runs, network)]:g})"
        lines.append([network, *cells.values()])
    return markdown(["network", *map(heading, headings)], lines)


def _table(runs: Runs, cell: Cell) -> str:
    networks = list(dict.fromkeys(network for network, _ in runs))
    rows = [(network, _columns(runs, network)) for network in networks]
    lines = [[network, *map(cell, columns.values())] for network, columns in rows]
    return markdown(["network", *map(heading, rows[0][1])], lines)


def _rates(runs: Runs) -> str:
    """The table of AdamW's final training losses at all rates."""
    networks = list(dict.fromkeys(network for network, _ in runs))
    lines = [
        [network, *(f"{_mean(runs[network, name], 'train'):.4g}" for name in ADAMW)]
        for network in networks
    ]
    return markdown(["network", *ADAMW], lines)


def heading(method: str) -> str:
    """Return the name of a method; of the file of a checkpoint, its name alone.

    Args:
        method: as the user gave it.
    """
    return Path(method.replace(".safetensors", "")).name


def highest_loss(own: Sequence[Record]) -> str:
    """Return the highest loss of a minibatch over the first one, of all runs.

    Args:
        own: the runs.
    """
    return f"{max(_number(record['highest']) for record in own):.2f}"


def _mean(own: Sequence[Record], what: str) -> float:
    return float(np.mean([_number(record[what]) for record in own]))


def _number(value: float | None) -> float:
    return math.inf if value is None else value
