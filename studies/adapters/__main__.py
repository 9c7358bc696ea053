"""Low-rank adapters, balanced along their symmetry at each step, against AdamW as it is.

    python -m studies.adapters --out runs/adapters [--quick]

A character model is trained on the pages of this repository and tuned to the source of the library.
First by the scale at which the adapters begin and by rank, at one rate; then each method at its own
best rate, which two seeds choose and five others measure. What is done is kept, so the study goes
on where it was killed.
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure
from tqdm import tqdm

from metaopt.cli.common import guarded, set_threads
from metaopt.evaluation.styles import LIGHT
from metaopt.storage import write_atomically
from studies.adapters.runs import METHODS, RATES, Setting, measured
from studies.command import study_parser
from studies.report import markdown, write_text

SCALES, RANKS = (0.1, 1.0, 10.0), (2, 8, 32)
ONE_RATE = 3e-3
SEEDS = (10, 11, 12, 13, 14)
CHOOSING = (0, 1)
COMPARED = ("adamw", "balanced", "balanced_keep")
PRETRAINING, STEPS = 2000, 300


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments, tune, and write the tables and the figure."""
    parser = study_parser("adapters", __doc__)
    values = parser.parse_args(arguments)
    set_threads(values.threads)
    folder, quick = Path(values.out), values.quick
    pretraining, steps = (5, 3) if quick else (PRETRAINING, STEPS)
    plain = Setting("adamw", ONE_RATE, steps=steps)
    ranks = RANKS[:1] if quick else RANKS
    grid = [
        replace(plain, method=method, rank=rank, scale=scale)
        for method in COMPARED
        for rank in ranks
        for scale in SCALES
    ]
    losses = _losses(folder, grid, pretraining)
    table = _scales(losses, plain, ranks)
    write_text(folder / "tables" / "adapters_scales.md", table)
    print(table)
    write_atomically(folder / "adapters.png", _figure(losses, plain, ranks))
    rates = RATES[:1] if quick else RATES
    seeds = (CHOOSING[:1], SEEDS[:1]) if quick else (CHOOSING, SEEDS)
    methods = METHODS[:2] if quick else METHODS
    table = _best(folder, plain, methods, rates, seeds, pretraining)
    write_text(folder / "tables" / "adapters_rates.md", table)
    print(table)


def _losses(folder: Path, settings: Sequence[Setting], pretraining: int) -> dict[Setting, float]:
    found = tqdm(measured(folder, settings, pretraining), total=len(settings), unit="tuning")
    return dict(zip(settings, found, strict=True))


def _scales(losses: dict[Setting, float], plain: Setting, ranks: Sequence[int]) -> str:
    """Return the table of final losses by scale and rank at one rate."""
    rows = []
    for method in COMPARED:
        for rank in ranks:
            own = [losses[replace(plain, method=method, rank=rank, scale=s)] for s in SCALES]
            cells = [f"{loss:.4f}" for loss in own]
            rows.append([method, str(rank), *cells, f"{max(own) / min(own):.3f}"])
        every = [loss for setting, loss in losses.items() if setting.method == method]
        rows.append([method, "all", "", "", "", f"{max(every) / min(every):.3f}"])
    headings = ["method", "rank", *(f"A × {scale:g}" for scale in SCALES), "worst over best"]
    return markdown(headings, rows)


def _best(
    folder: Path, plain: Setting, methods: Sequence[str], rates: Sequence[float],
    seeds: tuple[Sequence[int], Sequence[int]], pretraining: int,
) -> str:  # fmt: skip
    """Return the table of each method at the best of its rates."""
    rows = []
    baseline = math.nan
    for method in methods:
        tried = {
            rate: [replace(plain, method=method, rate=rate, seed=seed) for seed in seeds[0]]
            for rate in rates
        }
        found = {
            rate: sum(_losses(folder, settings, pretraining).values()) / len(settings)
            for rate, settings in tried.items()
        }
        best = min(rates, key=lambda rate: found[rate] if math.isfinite(found[rate]) else math.inf)
        settings = [replace(plain, method=method, rate=best, seed=seed) for seed in seeds[1]]
        own = list(_losses(folder, settings, pretraining).values())
        mean = sum(own) / len(own)
        baseline = mean if method == "adamw" else baseline
        spread = f"{min(own):.4f} to {max(own):.4f}"
        change = f"{100 * (mean / baseline - 1):+.2f} %"
        rows.append([method, f"{best:g}", f"{mean:.4f}", spread, change])
    return markdown(["method", "its best rate", "loss", "over seeds", "against adamw"], rows)


def _figure(losses: dict[Setting, float], plain: Setting, ranks: Sequence[int]) -> bytes:
    """Return the picture of losses by scale, a panel a rank."""
    figure = Figure(figsize=(9, 3), layout="constrained", facecolor="white")
    panels = figure.subplots(1, len(ranks), sharey=True, squeeze=False)[0]
    for axes, rank in zip(panels, ranks, strict=True):
        for method, colour in zip(COMPARED, LIGHT, strict=False):
            own = [losses[replace(plain, method=method, rank=rank, scale=s)] for s in SCALES]
            axes.plot(SCALES, own, marker="o", color=colour, label=method)
        axes.set_xscale("log")
        axes.set_title(f"rank {rank}", size=10)
        axes.set_xlabel("scale of A at the start")
    panels[0].set_ylabel("loss on held-out text")
    panels[0].legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=95, metadata={"Software": None})
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(guarded(main)())
