"""What ``scaling.py`` measured, as the Markdown tables of ``docs/scaling.md``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from scaling_model import LABELS, QUANTITIES, TITLES, Numbers, modelled

COEFFICIENTS = {
    "overhead": "overhead, ms a step",
    "window": "window, ms",
    "weight": "weight, ns",
    "unit": "unit, ns",
    "flop": "rate 1/flop, GFLOP/s",
    "cube": "cube, ns",
    "error_median": "median error",
    "error_largest": "largest error",
    "points": "points",
}
SCALES = {"overhead": 1e3, "window": 1e3, "weight": 1e9, "unit": 1e9, "cube": 1e9}
BYTES = {
    "base": "base, MB",
    "weight": "weight, bytes",
    "kept": "kept, bytes",
    "graph": "graph, bytes",
    "held": "held, bytes",
    "error_median": "median error",
    "error_largest": "largest error",
    "points": "points",
}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def short(value: float) -> str:
    """Three digits."""
    if value == 0:
        return "0"
    digits = f"{value:.3g}"
    return f"{value:.0f}" if "e+" in digits and value < 1e6 else digits


def axis(result: Numbers, name: str) -> str:
    """Seconds a trajectory, those of the model in brackets, and growth of the peak in MB."""
    tasks = {task: found for task, found in result["axes"][name].items() if found}
    head = [LABELS[name], *(f"{TITLES[task]}: s | MB" for task in tasks)]
    head = [part for cell in head for part in cell.split(" | ")]
    rows = []
    for value in max(tasks.values(), key=len):
        row = [value]
        for task, found in tasks.items():
            row += _cells(found.get(value), result["model"]["seconds"][task])
        rows.append(row)
    return table(head, rows)


def _cells(point: Numbers | None, coefficients: Numbers) -> list[str]:
    if point is None:
        return ["–", "–"]
    told = modelled(point, coefficients, "seconds") * point["steps"] / point["batch"]
    megabytes = QUANTITIES["bytes"][1](point) / 1e6
    return [f"{short(point['seconds'])} ({short(told)})", f"{megabytes:.0f}"]


def coefficients(model: Numbers) -> str:
    tasks = {task: found for task, found in model["seconds"].items() if found}
    rows = []
    for name, label in COEFFICIENTS.items():
        values = [found.get(name) for found in tasks.values()]
        rows.append([label, *(_coefficient(name, value) for value in values)])
    return table(["", *(TITLES[task] for task in tasks)], rows)


def _coefficient(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name == "flop":
        return short(1e-9 / value) if value else "–"
    if name.startswith("error"):
        return _error(value)
    return short(value * SCALES.get(name, 1.0))


def memory(model: Numbers) -> str:
    tasks = {task: found for task, found in model["bytes"].items() if found}
    rows = []
    for name, label in BYTES.items():
        values = [found.get(name) for found in tasks.values()]
        rows.append([label, *(_bytes(name, value) for value in values)])
    return table(["", *(TITLES[task] for task in tasks)], rows)


def _bytes(name: str, value: float | None) -> str:
    if value is None or name.startswith("error"):
        return _error(value)
    return short(value * (1e-6 if name == "base" else 1.0))


def _error(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def processes(found: Numbers) -> str:
    """Of the first process: its processor, and the clock on the wall."""
    head = ["problems", "at once", "processes", "processor, s a trajectory", "wall",
            "speed against the whole batch", "against one process", "MB"]  # fmt: skip
    rows = []
    for point in found.values():
        same = [p for p in found.values() if p["batch"] == point["batch"] and p["processes"] == 1]
        whole = next((p["seconds"] for p in same if not p["micro"]), None)
        alone = next(p["seconds"] for p in same if p["micro"] == point["micro"])
        cells = (point["batch"], point["micro"] or point["batch"], point["processes"])
        seconds = point["seconds"]
        speeds = [short(past / seconds) if past else "–" for past in (whole, alone)]
        megabytes = f"{point['growth'] / 1e6:.0f}"
        rows.append([*map(str, cells), short(seconds), short(point["wall"]), *speeds, megabytes])
    return table(head, rows)


def parts(found: Numbers) -> str:
    eigh, products = found["eigh_seconds_a_matrix"], found["product_flop_a_second"]
    cube = {width: seconds / int(width) ** 3 for width, seconds in eigh.items()}
    return "\n\n".join((
        table(
            ["", *(TITLES[task] for task in found["operations"])],
            [
                [name, *(f"{count[name]:.0f}" for count in found["operations"].values())]
                for name in ("kernels", "views")
            ],
        ),
        table(
            ["width", "eigenvectors, ms a matrix", "ns over width³"],
            [[w, short(1e3 * s), short(1e9 * cube[w])] for w, s in eigh.items()],
        ),
        table(
            ["hidden size", "product of the gates, GFLOP/s"],
            [[size, short(1e-9 * rate)] for size, rate in products.items()],
        ),
        f"an operation: {short(1e6 * found['operation_seconds'])} us; a sigmoid: "
        f"{short(1e9 * found['sigmoid_seconds_an_entry'])} ns an entry",
    ))  # fmt: skip


def markdown(result: Numbers) -> str:
    """All tables, each under its name."""
    sections = {name: axis(result, name) for name in LABELS if name in result["axes"]}
    sections |= {"seconds": coefficients(result["model"]), "memory": memory(result["model"])}
    if "processes" in result["axes"]:
        sections["processes"] = processes(result["axes"]["processes"])
    if "parts" in result:
        sections["parts"] = parts(result["parts"])
    return "\n\n".join(f"{name}\n\n{text}" for name, text in sections.items())
