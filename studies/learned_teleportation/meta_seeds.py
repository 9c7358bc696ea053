"""Measure a learned method over its meta-seeds, and choose one of them on validation tasks."""

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
    """One training, measured on the test tasks.

    Attributes:
        seed: its meta-seed.
        folder: of the training.
        score: of the best checkpoint on validation tasks; lower is better.
        skipped: meta-steps that were skipped because their gradient was not finite.
        best: curves of the best checkpoint.
        last: curves of the last checkpoint.
        double: curves of the best one, with the tasks' weights in float64.
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
    """Measure every meta-seed of a method.

    Args:
        name: of the method.
        folders: of its trainings, one a meta-seed.
        out: the folder that keeps the curves.
        family: draws the tasks.
        problems: seeds of the tasks.
        steps: to measure of the best checkpoint. The others are measured for at most 100.
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
    """Return the meta-seed to ship: the best one on validation tasks."""
    return min(runs, key=lambda run: run.score)
