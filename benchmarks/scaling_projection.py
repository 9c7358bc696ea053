"""What the model of ``scaling_model.py`` says beyond what was measured, and where its knees are.

These are extrapolations: of the coefficients, and of eigenvectors at the largest width timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from scaling_model import Numbers, modelled, seconds_features

from metaopt.cli.recipes import load_recipe
from metaopt.learned.meta_optimizer import MetaOptimizer
from metaopt.training.shards import _FACTS

TRAJECTORIES = 10**6
PROCESSES = 8
LARGE, LARGE_WIDTH = 10**8, 10**4  # weights, in square layers of that width
FLOAT32, FLOAT64 = 4, 8  # bytes
FIXED = ("overhead", "window")  # what does not grow with the problems


def projected(result: Numbers, reference: Numbers) -> Numbers:
    """All of it, where it can be told from what was measured."""
    tasks = {task: found for task, found in result["model"]["seconds"].items() if found}
    found: Numbers = {
        "knees": {task: knees(reference | {"task": task}, tasks[task]) for task in tasks},
        "shares": {task: shares(reference | {"task": task}, tasks[task]) for task in tasks},
        "million": {
            task: {
                f"hours_of_batches_of_{batch}": hours(reference | {"task": task, "batch": batch}, c)
                for batch in (4, 8, 64)
            }
            for task, c in tasks.items()
            if task != "evaluation"
        },
        "shared": {
            task: shared(reference | {"task": task}, c, task)
            for task, c in tasks.items()
            if task != "evaluation"
        },
        "gathered": {name: gathered(name) for name in ("update_tele", "update")},
    }
    eigh = result.get("parts", {}).get("eigh_seconds_a_matrix", {})
    return found | {"large": large(eigh, result["model"], reference)}


def shares(point: Numbers, coefficients: Numbers) -> Numbers:
    """Of a step, by term of the model."""
    parts = {name: coefficients[name] * x for name, x in seconds_features(point).items()}
    total = sum(parts.values())
    return {name: part / total for name, part in parts.items()}


def crossing(fixed: Callable[[float], float], growing: Callable[[float], float]) -> float:
    """The smallest size, to a thousandth, at which ``growing`` costs as much as ``fixed``."""
    low, high = 1e-3, 1e6
    while high / low > 1.001:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if growing(middle) > fixed(middle) else (middle, high)
    return high


def knees(point: Numbers, coefficients: Numbers) -> Numbers:
    """Where two terms are equal: what is started and what is computed, and parts of the latter."""

    def part(field: str, names: tuple[str, ...] | None) -> Callable[[float], float]:
        def seconds(size: float) -> float:
            features = seconds_features(point | {field: size})
            chosen = [n for n in features if (n in names if names else n not in FIXED)]
            return sum(coefficients[name] * features[name] for name in chosen)

        return seconds

    found = {
        "batch": crossing(part("batch", FIXED), part("batch", None)),
        "width_of_8": crossing(part("width", FIXED), part("width", None)),
        "hidden": crossing(part("hidden", ("weight", "unit")), part("hidden", ("flop",))),
    }
    if "cube" in coefficients:
        rest = ("weight", "unit", "flop")
        found["width_of_cubes"] = crossing(part("width", rest), part("width", ("cube",)))
    return found


def hours(point: Numbers, coefficients: Numbers) -> float:
    """Of one process for a million trajectories."""
    seconds = modelled(point, coefficients, "seconds") * point["steps"] / point["batch"]
    return seconds * TRAJECTORIES / 3600


def gathered(name: str) -> Numbers:
    """What a shard sends after each window: facts and gradients, in float64."""
    parameters = sum(
        p.numel() for p in MetaOptimizer(load_recipe(f"lstm_{name}").networks).parameters()
    )
    return {"parameters": parameters, "bytes_a_shard": FLOAT64 * (parameters + len(_FACTS))}


def shared(point: Numbers, coefficients: Numbers, name: str) -> Numbers:
    """A million trajectories by processes that have a part of each batch, of the point's size."""
    parts = PROCESSES
    windows = TRAJECTORIES / (parts * point["batch"]) * -(-point["steps"] // point["window"])
    a_window = parts * gathered(name)["bytes_a_shard"]
    spent = hours(point, coefficients) / parts
    return {
        "processes": parts,
        "hours": spent,
        "windows": windows,
        "bytes_a_window": a_window,
        "bytes": windows * a_window,
        "bytes_a_second": windows * a_window / (3600 * spent),
    }


def large(eigh: Numbers, model: Numbers, reference: Numbers) -> Numbers:
    """A network of 10^8 weights: bytes of the states, seconds and bytes of its eigenvectors."""
    found: Numbers = {"weights": LARGE, "width": LARGE_WIDTH}
    for name in ("lstm_update_tele_v1", "lstm_update"):
        spec = load_recipe(name).networks
        found[f"{name}_state_bytes"] = LARGE * 2 * spec.layers * spec.hidden * FLOAT32
    moments = [t.numel() for t in _layerwise_state(LARGE_WIDTH // 100)]
    found["lstm_layerwise_state_bytes"] = LARGE * FLOAT32 * sum(moments) / (LARGE_WIDTH // 100) ** 2
    if eigh:
        width = max(int(size) for size in eigh)
        seconds = eigh[str(width)] * (LARGE_WIDTH / width) ** 3
        found |= {"eigh_from_width": width, "eigh_seconds": seconds}
    if coefficients := model["seconds"].get("evaluation"):
        width = (LARGE / 2 / reference["batch"]) ** 0.5  # problems of as many weights
        features = seconds_features(reference | {"task": "evaluation", "width": width})
        names = ("weight", "unit", "flop")
        found["m1_seconds_a_step"] = sum(coefficients[n] * features[n] for n in names)
    found["eigh_bytes_a_matrix"] = FLOAT64 * LARGE_WIDTH**2
    for task, coefficients in model["bytes"].items():
        if coefficients and task != "evaluation":
            units = load_recipe(f"lstm_{task}").networks.layers * reference["hidden"]
            held = coefficients["held"] * units + coefficients["graph"]
            found[f"{task}_held_bytes_a_step"] = held * LARGE
    return found


def _layerwise_state(width: int) -> list[Any]:
    """The tensors that the layerwise m1 keeps of one square matrix."""
    import torch

    from metaopt.symmetry.chain import LayerChain

    meta = MetaOptimizer(replace(load_recipe("lstm_layerwise_v1").networks))
    return meta.update.init_state(LayerChain((), ()), [torch.zeros(width, width)])[-4:]
