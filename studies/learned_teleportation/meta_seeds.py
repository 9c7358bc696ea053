"""Learned methods over their meta-seeds: trained, chosen on validation problems, measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from metaopt.learned.checkpoint import read_checkpoint
from metaopt.tasks import RegressionFamily
from metaopt.training.run import BEST, LAST
from studies.learned_teleportation.curves import Curves, measure_checkpoint


@dataclass(frozen=True)
class Trained:
    """One run, measured on the problems reported.

    Attributes:
        seed: its meta-seed.
        folder: of the run.
        score: on validation problems, of the best checkpoint.
        skipped: meta-steps skipped because their gradient was not finite.
        best, last: curves of the best and of the last checkpoint.
        double: of the best one with weights in float64.
    """

    seed: int
    folder: Path
    score: float
    skipped: int
    best: Curves
    last: Curves
    double: Curves


def measured(
    name: str,
    folders: Sequence[Path],
    out: Path,
    family: RegressionFamily,
    problems: Sequence[int],
    steps: int,
) -> list[Trained]:
    """Every meta-seed of a method, whose run is in its folder.

    Args:
        steps: of the best checkpoint; the others are measured to step 100 or so far.
    """

    def curves(folder: Path, which: str, family: RegressionFamily, steps: int) -> Curves:
        path = folder / which
        kept = out / f"{folder.name}-{path.stem}-{family.dtype}-{steps}.npz"
        return measure_checkpoint(kept, path, family, problems, steps)

    double = replace(family, dtype="float64")
    short = min(steps, 100)
    results = []
    for seed, folder in enumerate(tqdm(folders, desc=name, unit="meta-seed")):
        results.append(
            Trained(
                seed,
                folder,
                read_checkpoint(folder / BEST).facts["validation_score"],
                read_checkpoint(folder / LAST).facts["skipped"],
                curves(folder, BEST, family, steps),
                curves(folder, LAST, family, short),
                curves(folder, BEST, double, short),
            )
        )
    return results


def chosen(runs: Sequence[Trained]) -> Trained:
    """The one to ship: best on validation problems."""
    return min(runs, key=lambda run: run.score)
