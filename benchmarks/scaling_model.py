"""A model of the seconds and the memory that ``scaling.py`` measured, and a picture of both.

With B problems of width k, N = 2 k^2 B weights, hidden size H, L layers and windows of K steps,

    seconds a step = overhead + N (weight + unit H L + flop F) + cube B k^3 + window / K
    bytes = base + N (kept H L + K (held H L + graph))

where F is the arithmetic of the LSTMs a weight. The coefficients are those of least squares of
the relative error, none below 0.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from arithmetic import INPUTS, flop_of_step
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.optimize import nnls

from metaopt.cli.recipes import load_recipe
from metaopt.evaluation.styles import LINE_STYLES, MARKERS
from metaopt.learned.spec import MetaOptimizerSpec

Numbers = dict[str, Any]
LABELS = {
    "width": "width, of 8 problems",
    "width_of_one": "width, of one problem",
    "batch": "problems in a batch",
    "steps": "steps",
    "hidden": "hidden size of the LSTMs",
    "window": "steps in a window",
}
GREYS = ("0.0", "0.35", "0.6")
TITLES = {
    "update_tele": "training LSTM(update,tele)",
    "update": "training LSTM(update)",
    "evaluation": "evaluating LSTM(update,tele)",
}


@lru_cache
def _networks(name: str) -> MetaOptimizerSpec:
    return load_recipe(name).networks


def _sizes(point: Numbers) -> tuple[int, int, int]:
    """Weights of the batch, layers of the LSTM, and its outputs."""
    spec = _networks("lstm_update" if point["task"] == "update" else "lstm_update_tele_v1")
    return 2 * point["width"] ** 2 * point["batch"], spec.layers, len(spec.heads)


def flop(point: Numbers) -> float:
    """Of m1's products in a step of the batch, on average."""
    columns, layers, heads = _sizes(point)
    hidden, window = point["hidden"], min(point["window"], point["steps"])
    if point["task"] == "evaluation":
        inner = sum(4 * hidden * ((hidden if k else INPUTS) + hidden) for k in range(layers))
        return 2 * columns * (inner + heads * hidden)
    first, later = (flop_of_step(layers, hidden, heads, columns, first=f) for f in (True, False))
    return (first + (window - 1) * later) / window


def seconds_features(point: Numbers) -> dict[str, float]:
    """What the seconds of a step of the batch are a sum of."""
    columns, layers, _ = _sizes(point)
    features = {
        "overhead": 1.0,
        "weight": float(columns),
        "unit": float(columns * point["hidden"] * layers),
        "flop": flop(point),
        "cube": float(point["batch"] * point["width"] ** 3),
    }
    if point["task"] == "update":  # nothing is decomposed
        del features["cube"]
    if point["task"] != "evaluation":
        features["window"] = -(-point["steps"] // point["window"]) / point["steps"]
    return features


def memory_features(point: Numbers) -> dict[str, float]:
    """What the growth of the peak RSS is a sum of."""
    columns, layers, _ = _sizes(point)
    units = columns * point["hidden"] * layers
    features = {"base": 1.0, "kept": float(units), "weight": float(columns)}
    if point["task"] == "evaluation":
        return features
    window = min(point["window"], point["steps"])
    return features | {"held": float(units * window), "graph": float(columns * window)}


def step_seconds(point: Numbers) -> float:
    return float(point["seconds"] * point["batch"] / point["steps"])


QUANTITIES: dict[str, tuple[Callable[[Numbers], dict[str, float]], Callable[[Numbers], float]]] = {
    "seconds": (seconds_features, step_seconds),
    "bytes": (memory_features, lambda point: float(point["growth"])),
}

LEAST = {"seconds": 0.0, "bytes": 4e6}  # below it an allocator's leftovers hide what was asked for


def points(axes: Numbers, task: str) -> list[Numbers]:
    """All of a task on the axes that the model covers, the reference once an axis."""
    return [point for name in LABELS if name in axes for point in axes[name].get(task, {}).values()]


def fit(found: Sequence[Numbers], quantity: str) -> Numbers:
    """Coefficients by name, and the relative errors."""
    features, measured = QUANTITIES[quantity]
    truth = np.array([measured(point) for point in found])
    kept = truth > LEAST[quantity]
    if not kept.any():
        return {}
    rows = [features(point) for point, keep in zip(found, kept, strict=True) if keep]
    table = np.array([list(row.values()) for row in rows]) / truth[kept, None]
    scale = table.max(axis=0)
    solution, _ = nnls(table / scale, np.ones(len(table)))
    error = np.abs(table / scale @ solution - 1)
    named = dict(zip(rows[0], (solution / scale).tolist(), strict=True))
    return named | {
        "error_median": float(np.median(error)),
        "error_largest": float(error.max()),
        "points": len(rows),
    }


def fitted(axes: Numbers) -> Numbers:
    """By quantity and task."""
    return {
        quantity: {task: fit(found, quantity) for task in TITLES if (found := points(axes, task))}
        for quantity in QUANTITIES
    }


def modelled(point: Numbers, coefficients: Numbers, quantity: str) -> float:
    """What the model says of a point."""
    features = QUANTITIES[quantity][0](point)
    return sum(coefficients[name] * value for name, value in features.items())


def picture(result: Numbers) -> bytes:
    """A PNG: seconds a trajectory on each axis, and memory; points measured, lines the model."""
    figure = Figure(figsize=(11, 6.2), layout="constrained")
    panels = [(name, "seconds") for name in ("width", "width_of_one", "batch", "hidden")]
    panels += [("batch", "bytes"), ("window", "bytes")]
    handles: dict[str, Any] = {}
    for axes, (name, quantity) in zip(figure.subplots(2, 3).flat, panels, strict=True):
        for k, task in enumerate(TITLES):
            found = list(result["axes"].get(name, {}).get(task, {}).values())
            coefficients = result["model"][quantity].get(task)
            if not found or not coefficients:
                continue
            x, y, model = _curves(found, coefficients, name, quantity)
            look = {"color": GREYS[k], "marker": MARKERS[k], "markersize": 5, "linewidth": 1.2}
            axes.plot(x, model, LINE_STYLES[k], color=GREYS[k], linewidth=1.2)
            axes.plot(x, y, **look | {"linestyle": "none"})
            handles.setdefault(TITLES[task], axes.plot([], [], LINE_STYLES[k], **look)[0])
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(LABELS[name])
        axes.set_ylabel("seconds a trajectory" if quantity == "seconds" else "memory, MB")
        axes.grid(True, which="major", alpha=0.3)
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=3, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _curves(
    found: Sequence[Numbers], coefficients: Numbers, name: str, quantity: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Of an axis: its values, what was measured there and what the model says."""
    measured = QUANTITIES[quantity][1]
    rows = []
    for point in found:
        values = (measured(point), modelled(point, coefficients, quantity))
        scale = point["steps"] / point["batch"] if quantity == "seconds" else 1e-6
        rows.append((point[name.removesuffix("_of_one")], *(scale * value for value in values)))
    x, y, model = np.array(rows, dtype=np.float64).T
    return x, y, model
