"""Learned methods over their meta-seeds: trained, chosen on validation problems, measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from metaopt.evaluation.statistics import log_mean_bands
from metaopt.experiments.curves import Curves, checksum, measure
from metaopt.learned.checkpoint import load_meta_optimizer, read_checkpoint
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.problems import RegressionFamily
from metaopt.training.run import BEST, LAST


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
    results = []
    for seed, folder in enumerate(tqdm(folders, desc=name, unit="meta-seed")):

        def curves(
            which: str, steps: int, dtype: str = family.dtype, folder: Path = folder
        ) -> Curves:
            path = folder / which
            return measure(
                out / f"{folder.name}-{path.stem}-{dtype}-{steps}.npz",
                checksum(path),
                lambda problem: LearnedOptimizer(problem, load_meta_optimizer(path)),
                replace(family, dtype=dtype),
                problems,
                steps,
            )

        short = min(steps, 100)
        results.append(
            Trained(
                seed,
                folder,
                read_checkpoint(folder / BEST).facts["validation_score"],
                read_checkpoint(folder / LAST).facts["skipped"],
                curves(BEST, steps),
                curves(LAST, short),
                curves(BEST, short, "float64"),
            )
        )
    return results


def chosen(runs: Sequence[Trained]) -> Trained:
    """The one to ship: best on validation problems."""
    return min(runs, key=lambda run: run.score)


def mean_curve(curves: Curves) -> NDArray[np.float64]:
    """Geometric means over problems, ``(steps + 1,)``; NaN where one is not finite."""
    return log_mean_bands(curves.losses)[0]
