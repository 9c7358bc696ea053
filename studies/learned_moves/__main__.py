"""What a learned group element adds to a balance by hand, beside AdamW.

    python -m studies.learned_moves --out runs/learned_moves [--quick]

The rate of AdamW is chosen for each kind of task without moves; m2 is trained at these rates on
tunings of small networks and on attention; a snapshot is chosen on validation tasks, and all
methods are measured on test tasks. What is done is kept, so the study goes on where it was killed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from metaopt.cli.common import guarded, set_threads
from metaopt.evaluation.statistics import geometric_mean
from studies.command import study_parser
from studies.learned_moves.characters import PRETRAINING
from studies.learned_moves.families import families
from studies.learned_moves.measured import (
    RATES,
    Kept,
    Losses,
    Scale,
    chosen,
    compared,
    hand_constant,
    own_rates,
)
from studies.learned_moves.training import Strategy, taught
from studies.report import markdown, write_text


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments, train, measure, and write the tables."""
    parser = study_parser("learned_moves", __doc__)
    values = parser.parse_args(arguments)
    set_threads(values.threads)
    folder, quick = Path(values.out), values.quick
    scale = Scale(0.1, 4, RATES[:1]) if quick else Scale()
    strategy = Strategy(2, 2, 1, snapshots=1) if quick else Strategy()
    pretraining = 3 if quick else PRETRAINING
    kept = Kept(folder / "measured.json")
    validation = families("validation", folder, pretraining)
    trained_kinds = [f for f in validation if f.kind != "characters"]
    rates = own_rates(kept, trained_kinds, scale)
    shared = {kind: own["none"] for kind, own in rates.items()}
    snapshots = taught(
        folder / "m2.safetensors", families("train", folder, pretraining), shared, strategy
    )
    best, mean, size = chosen(kept, snapshots, trained_kinds, shared, scale)
    thetas = torch.stack([snapshots[place, seed] for seed, place in enumerate(best)])
    rates = own_rates(kept, validation, scale)
    constants = {
        kind: hand_constant(kept, [f for f in validation if f.kind == kind], own["none"], scale)
        for kind, own in rates.items()
    }
    found: dict[str, list[Losses]] = {}
    for family in families("test", folder, pretraining):
        own, kind = rates[family.kind], family.kind
        losses = compared(
            kept, family, thetas, own["none"], own, (constants[kind], mean), size, scale
        )
        found.setdefault(kind, []).append(losses)
    table = _table(found)
    write_text(folder / "tables" / "learned_moves.md", table)
    print(table)


def _table(found: dict[str, list[Losses]]) -> str:
    """Return losses over those of the balance by hand, by kind of task.

    A cell has the geometric mean over tasks and meta-seeds, its 95 % bootstrap interval over tasks,
    the range of the meta-seeds, and the share of runs that end lower than the balance.
    """
    rows = []
    for method in next(iter(found.values()))[0]:
        cells = [_cell(method, kind) for kind in found.values()]
        rows.append([method, *(["1"] * len(cells) if method == "balance" else cells)])
    return markdown(["method", *found], rows)


def _cell(method: str, families: Sequence[Losses]) -> str:
    base = np.array([loss for losses in families for loss in losses["balance"][0]])
    runs = np.concatenate([np.array(losses[method]) for losses in families], axis=1)
    ratios = np.log(runs / base)
    middle = geometric_mean(np.exp(ratios.mean(axis=0)))
    spread = f"{middle.low:.3f} to {middle.high:.3f}"
    if len(runs) > 1:
        seeds = np.exp(ratios.mean(axis=1))
        spread += f"; meta-seeds {seeds.min():.3f} to {seeds.max():.3f}"
    return f"{middle.mean:.3f} ({spread}), {(ratios < 0).mean():.0%}"


if __name__ == "__main__":
    sys.exit(guarded(main)())
