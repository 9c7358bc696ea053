"""Evaluate methods on the same problems from the same start, and write what happened."""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from metaopt.evaluation.methods import Method, describe
from metaopt.evaluation.rollout import Trajectory, rollout
from metaopt.problems import RegressionFamily, check_seeds
from metaopt.storage import write_atomically

RESULTS = "results.jsonl"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Result:
    """One method's run over all problems."""

    method: Method
    trajectory: Trajectory

    @property
    def losses(self) -> NDArray[np.float64]:
        """``(steps + 1, B)``."""
        losses: NDArray[np.float64] = self.trajectory.losses.numpy()
        return losses


def evaluate(
    methods: Sequence[Method], family: RegressionFamily, seeds: Iterable[int], steps: int
) -> Iterator[Result]:
    """Each method in turn, on fresh copies of the same problems.

    Args:
        seeds: test seeds; what is chosen on validation problems is chosen elsewhere.
    """
    checked = check_seeds(seeds, "test")
    for method in methods:
        problem = family.sample(checked)
        bar: tqdm[Any] = tqdm(total=steps, desc=method.name, unit="step", leave=False, disable=None)
        with bar:
            trajectory = rollout(problem, method.optimizer(problem), steps, progress=bar)
        yield Result(method, trajectory)


def rows(result: Result, seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The JSONL rows of one method: by problem, then by step.

    ``loss`` and ``grad_norm`` are null where not finite; ``defect`` is that of the teleportation
    in the step that led here, null where nothing was teleported.
    """
    run = result.trajectory
    columns = [
        tensor.T.tolist() for tensor in (run.losses, run.grad_norms, run.defects, run.refused)
    ]
    for seed, *per_problem in zip(seeds, *columns, strict=True):
        for step, (loss, norm, defect, refused) in enumerate(zip(*per_problem, strict=True)):
            yield {
                "method": result.method.name,
                "problem_seed": seed,
                "step": step,
                "loss": _finite(loss),
                "grad_norm": _finite(norm),
                "defect": _finite(defect),
                "refused": refused,
            }


def write_results(out: Path, results: Sequence[Result], seeds: Sequence[int]) -> None:
    """``results.jsonl``, whole or not at all."""
    lines = [json.dumps(row) for result in results for row in rows(result, seeds)]
    write_atomically(out / RESULTS, ("\n".join(lines) + "\n").encode())


def write_manifest(
    out: Path, results: Sequence[Result], seeds: Sequence[int], family: RegressionFamily, steps: int
) -> None:
    """``manifest.json``: what is needed to get the same numbers again."""
    manifest = {
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("metaopt", "torch", "numpy", "higher")},
        },
        "git_revision": git_revision(),
        "threads": torch.get_num_threads(),
        "config": {"problem": asdict(family), "steps": steps},
        "problem_seeds": list(seeds),
        "methods": {
            result.method.name: {
                **describe(result.method),
                "seconds_per_step": result.trajectory.seconds_per_step,
            }
            for result in results
        },
    }
    write_atomically(out / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())


def git_revision() -> str | None:
    """The revision of the checkout this package runs from; None outside one, or without git."""
    root = Path(__file__).parents[2]
    try:
        if Path(_git(root, "rev-parse", "--show-toplevel")) != root:
            return None  # installed inside somebody else's checkout
        return _git(root, "describe", "--always", "--dirty")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None  # run from a checkout that is not installed


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
