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

import torch

from metaopt.cli.common import guarded, set_threads
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
    ratio,
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
    """Return losses over those of the balance by hand, and their range over meta-seeds."""
    methods = list(next(iter(found.values()))[0])
    rows = []
    for method in methods:
        cells = [method]
        for kind in found.values():
            base = [loss for losses in kind for loss in losses["balance"][0]]
            runs = [
                [loss for losses in kind for loss in losses[method][seed]]
                for seed in range(len(kind[0][method]))
            ]
            ratios = sorted(ratio(run, base) for run in runs)
            middle = f"{ratios[len(ratios) // 2]:.4f}"
            spread = f" ({ratios[0]:.4f} to {ratios[-1]:.4f})" if len(ratios) > 1 else ""
            lower = sum(own < other for run in runs for own, other in zip(run, base, strict=True))
            share = lower / (len(runs) * len(base))
            cells.append(f"{middle}{spread}, {share:.0%}" if method != "balance" else "1")
        rows.append(cells)
    return markdown(["method", *found], rows)


if __name__ == "__main__":
    sys.exit(guarded(main)())
