"""Networks equalised along their symmetries, and then rounded to few bits, against rounding alone.

    python -m studies.quantisation --out runs/quantisation [--data-dir FOLDER] [--quick]

The first network is a depthwise one on MNIST, which is left out without --data-dir or METAOPT_DATA.
What is done is kept, so the study goes on where it was killed.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from tqdm import tqdm

import metaopt
from metaopt.cli.common import guarded, set_threads
from metaopt.evaluation.styles import LIGHT
from metaopt.storage import write_atomically
from studies.command import study_parser
from studies.quantisation.subjects import Characters, Depthwise, MiniLM, Subject, rounded_copy
from studies.report import markdown, write_text

METHODS = {"rounded": None, "equalised": 0, "equalised, searched": 60}
"""Steps of the search after the closed form; None for no move at all."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments, round, and write the table and the figure."""
    parser = study_parser("quantisation", __doc__)
    parser.add_argument("--data-dir", type=str, default="", help="the folder above mnist/")
    values = parser.parse_args(arguments)
    set_threads(values.threads)
    folder = Path(values.out)
    folder.mkdir(parents=True, exist_ok=True)
    subjects: dict[str, Subject] = {}
    if values.data_dir or os.environ.get("METAOPT_DATA"):
        subjects["depthwise network"] = Depthwise(folder, values.data_dir, values.quick)
    subjects["character model"] = Characters(folder, values.quick)
    if MiniLM.available() and not values.quick:
        subjects["MiniLM"] = MiniLM()
    costs = _costs(folder, subjects, values.quick)
    table = _table(costs, subjects)
    write_text(folder / "tables" / "quantisation.md", table)
    print(table)
    write_atomically(folder / "quantisation.png", _figure(costs, subjects))


def _costs(folder: Path, subjects: dict[str, Subject], quick: bool) -> dict[str, float]:
    """Return what each way to round costs, by subject, rounding and method."""
    path = folder / "costs.json"
    known: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    for name, subject in subjects.items():
        cells = [(rounding, method) for rounding in subject.roundings for method in METHODS]
        if f"{name}, exact" not in known:
            known[f"{name}, exact"] = subject.cost(subject.model())
        for (bits, per), method in tqdm(cells[:3] if quick else cells, desc=name):
            key = f"{name}, {bits}, {per}, {method}"
            if key in known:
                continue
            model, steps = subject.model(), METHODS[method]
            if steps is not None:
                steps = min(steps, 2) if quick else steps
                metaopt.equalize(model, subject.inputs(), bits=bits, per=per, steps=steps)
            known[key] = subject.cost(rounded_copy(model, bits, per))
            write_atomically(path, json.dumps(known, indent=1).encode())
    return known


def _table(costs: dict[str, float], subjects: dict[str, Subject]) -> str:
    rows = []
    for name, subject in subjects.items():
        exact = costs[f"{name}, exact"]
        for bits, per in subject.roundings:
            own = [costs.get(f"{name}, {bits}, {per}, {method}") for method in METHODS]
            cells = ["" if cost is None else f"{cost - exact:.4g}" for cost in own]
            label = f"{name}: {subject.measure} ({exact:.4g})"
            rows.append([label, f"{bits} bits per {per}", *cells])
    return markdown(["network: what is lost (without rounding)", "rounding", *METHODS], rows)


def _figure(costs: dict[str, float], subjects: dict[str, Subject]) -> bytes:
    """Return the picture of what is lost, a panel a network."""
    figure = Figure(figsize=(9, 3.2), layout="constrained", facecolor="white")
    panels = figure.subplots(1, len(subjects), squeeze=False)[0]
    for axes, (name, subject) in zip(panels, subjects.items(), strict=True):
        labels = [f"{bits}\n{per}" for bits, per in subject.roundings]
        for place, (method, colour) in enumerate(zip(METHODS, LIGHT, strict=False)):
            own = [
                costs.get(f"{name}, {bits}, {per}, {method}", float("nan"))
                - costs[f"{name}, exact"]
                for bits, per in subject.roundings
            ]
            xs = [x + 0.27 * (place - 1) for x in range(len(own))]
            axes.bar(xs, own, width=0.25, color=colour, label=method)
        axes.set_xticks(range(len(labels)), labels, fontsize=7)
        axes.set_title(name, size=10)
        axes.set_ylabel(f"lost: {subject.measure}", fontsize=8)
        axes.set_yscale("symlog", linthresh=1e-3)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=95, metadata={"Software": None})
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(guarded(main)())
