"""Measure the losses of a method on tasks, and keep them on disk so that a study can go on."""

from __future__ import annotations

import hashlib
import io
import json
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import metaopt
import studies
from metaopt.errors import UserError
from metaopt.evaluation.rollout import rollout
from metaopt.evaluation.statistics import geometric_means
from metaopt.learned.checkpoint import load_meta_optimizer
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.storage import write_atomically
from metaopt.tasks import Regression, RegressionFamily

DAMAGED = (
    AttributeError,
    EOFError,
    KeyError,
    NotImplementedError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    RuntimeError,
    MemoryError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy and zipfile raise for a file that is no .npz file."""

Build = Callable[[Regression], torch.optim.Optimizer]


@dataclass(frozen=True)
class Curves:
    """The losses of a method on B tasks, with what its teleports did.

    Attributes:
        losses: before each step and after the last, ``(steps + 1, B)``.
        defects: invariance errors, ``(steps + 1, B)``; NaN where nothing was teleported.
        refused: how many teleports were rejected, over all steps and tasks.
        seconds: of a step of all tasks together.
    """

    losses: NDArray[np.float64]
    defects: NDArray[np.float64]
    refused: int
    seconds: float

    @property
    def means(self) -> NDArray[np.float64]:
        """Geometric means over tasks, ``(steps + 1,)``; NaN where a loss is not finite."""
        return geometric_means(self.losses)

    def mean(self, step: int) -> float:
        """Return the geometric mean over tasks at a step; infinite if a loss is not finite."""
        mean = float(geometric_means(self.losses[step]))
        return math.inf if math.isnan(mean) else mean

    def worst(self, step: int) -> float:
        """Return the largest loss at a step; infinite if one is not finite."""
        losses = self.losses[step]
        return float(losses.max()) if np.isfinite(losses).all() else float("inf")

    @property
    def median_defect(self) -> float:
        """The median invariance error over steps and tasks; NaN if nothing was teleported."""
        finite = self.defects[np.isfinite(self.defects)]
        return float(np.median(finite)) if len(finite) else float("nan")


def measure(
    path: Path, what: str, build: Build, family: RegressionFamily, seeds: Sequence[int], steps: int
) -> Curves:
    """Measure the curves of a method, or read them if they were made by the same code before.

    Args:
        path: the file that keeps them.
        what: which method it is, with its rate or the checksum of its checkpoint.
        build: makes its optimizer for a batch of tasks.
        family: draws the tasks.
        seeds: of the tasks.
        steps: how many to measure.

    Raises:
        UserError: if the file is damaged.
    """
    made_by = [torch.__version__, _package_digest()]
    facts = json.dumps([what, asdict(family), list(seeds), steps, made_by])
    key = hashlib.sha256(facts.encode()).hexdigest()
    if path.exists():
        kept = _kept(path, key)
        if kept is not None:
            return kept
    problem = family.sample(seeds)
    run = rollout(problem, build(problem), steps)
    curves = Curves(
        run.losses.numpy(),
        run.invariance_errors.numpy(),
        int(run.rejected.sum()),
        run.seconds_per_step,
    )
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        key=np.array(key),
        losses=curves.losses,
        defects=curves.defects,
        refused=np.array(curves.refused),
        seconds=np.array(curves.seconds),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())
    return curves


def _kept(path: Path, key: str) -> Curves | None:
    """Return what the file holds; None if that was measured on something else."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            if str(kept["key"]) != key:
                return None
            return Curves(
                kept["losses"], kept["defects"], int(kept["refused"]), float(kept["seconds"])
            )
    except DAMAGED as error:
        raise UserError(
            f"expected curves of a study in {str(path)!r}, got a file that is damaged or "
            f"something else ({type(error).__name__}): remove it to measure anew"
        ) from None


def measure_checkpoint(
    path: Path, checkpoint: Path, family: RegressionFamily, seeds: Sequence[int], steps: int
) -> Curves:
    """Measure the curves of a learned optimizer; see :func:`measure`."""
    return measure(
        path,
        checksum(checkpoint),
        lambda problem: LearnedOptimizer(problem, load_meta_optimizer(checkpoint)),
        family,
        seeds,
        steps,
    )


@cache
def _package_digest() -> str:
    """Return a digest of all sources: any change of the library or a study may change a curve."""
    digest = hashlib.sha256()
    for package in (metaopt, studies):
        root = Path(str(package.__file__)).parent
        for source in sorted(root.rglob("*.py")):
            digest.update(str(source.relative_to(root.parent)).encode() + source.read_bytes())
    return digest.hexdigest()


def file_name(text: str) -> str:
    """Replace all but letters, digits, dots and hyphens by underscores."""
    return "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in text)


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
