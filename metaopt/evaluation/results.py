"""The results of an evaluation as files, which are checked when they are read.

``results.jsonl`` has a row for each method, task and step. ``manifest.json`` holds the config, the
versions, the SHA-256 of ``results.jsonl`` and that of its own content.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaopt.errors import UserError
from metaopt.evaluation.evaluate import Result
from metaopt.evaluation.methods import Method, describe
from metaopt.evaluation.rollout import Trajectory
from metaopt.extras import DISTRIBUTION
from metaopt.storage import user_path, write_together
from metaopt.tasks import RegressionFamily
from metaopt.tasks.module_tasks import Singles

RESULTS = "results.jsonl"
MANIFEST = "manifest.json"
CHECKSUMS = "sha256"
Tasks = RegressionFamily | Singles


def previous(name: str) -> str:
    """Return the name that older results are kept under, such as results.previous.jsonl.

    Args:
        name: the name of a file of results.
    """
    stem, dot, suffix = name.partition(".")
    return f"{stem}.previous{dot}{suffix}"


def save(
    out: Path, results: Sequence[Result], seeds: Sequence[int], family: Tasks, steps: int
) -> None:
    """Write ``results.jsonl`` and ``manifest.json``, and keep older ones under other names.

    :func:`previous` gives these names.

    Args:
        out: the folder.
        results: one for each method.
        seeds: the seeds of the tasks.
        family: what built the tasks.
        steps: optimization steps of each method.

    Raises:
        OSError: if a file cannot be written; the older files are whole then.
    """
    out = user_path(out)
    lines = [json.dumps(row) for result in results for row in rows(result, seeds)]
    files = {out / RESULTS: ("\n".join(lines) + "\n").encode()}
    manifest = _manifest(results, seeds, family, steps)
    manifest[CHECKSUMS] = {
        RESULTS: hashlib.sha256(files[out / RESULTS]).hexdigest(),
        MANIFEST: _digest(manifest),
    }
    files[out / MANIFEST] = _text(manifest)
    write_together(files, {path: out / previous(path.name) for path in files})


def rows(result: Result, seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Return the rows of one method in ``results.jsonl``, by task and then by step.

    ``loss`` and ``grad_norm`` are null if they are not finite. ``defect`` is the invariance error
    of the teleportation in the step that led here, and null if there was none. ``refused`` says
    whether that teleportation was rejected.

    Args:
        result: of the method.
        seeds: the seeds of the tasks, the rows' "problem_seed".
    """
    run = result.trajectory
    columns = [
        tensor.T.tolist()
        for tensor in (run.losses, run.grad_norms, run.invariance_errors, run.rejected)
    ]
    for seed, *per_problem in zip(seeds, *columns, strict=True):
        for step, (loss, norm, error, rejected) in enumerate(zip(*per_problem, strict=True)):
            yield {
                "method": result.method.name,
                "problem_seed": seed,
                "step": step,
                "loss": _finite(loss),
                "grad_norm": _finite(norm),
                "defect": _finite(error),
                "refused": rejected,
            }


def _manifest(
    results: Sequence[Result], seeds: Sequence[int], family: Tasks, steps: int
) -> dict[str, Any]:
    """Return what is needed to get the same numbers again."""
    return {
        "versions": {
            "python": platform.python_version(),
            "metaopt": _version(DISTRIBUTION),
            **{name: _version(name) for name in ("torch", "numpy", "higher")},
        },
        "git_revision": git_revision(),
        "threads": torch.get_num_threads(),
        "config": {"problem": _described(family), "steps": steps},
        "problem_seeds": list(seeds),
        "methods": {
            result.method.name: {
                **describe(result.method),
                "seconds_per_step": result.trajectory.seconds_per_step,
                **_held_out(result),
            }
            for result in results
        },
    }


def _described(family: Tasks) -> dict[str, Any]:
    if isinstance(family, Singles):
        return {"task": family.name, "eval_batches": family.eval_batches}
    return asdict(family)


def _held_out(result: Result) -> dict[str, Any]:
    """What a result on tasks of any module has beside its losses."""
    if not result.held_out:
        return {}
    numbers = {name: list(map(_finite, own)) for name, own in result.held_out.items()}
    return {"held_out": numbers, "state_bytes": result.state_bytes}


def read_manifest(out: Path, name: str = MANIFEST) -> dict[str, Any]:
    """Return the manifest of a folder of results.

    Args:
        out: the folder.
        name: the name of the file.

    Raises:
        UserError: if it is missing, damaged, or not a manifest.
    """
    try:
        data = (out / name).read_bytes()
        manifest = json.loads(data)
        written = data == _text(manifest)
        expected = manifest.pop(CHECKSUMS)
        whole = written and _digest(manifest) == expected[MANIFEST]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"expected a manifest of eval_meta.py, got {str(out / name)!r}, which is missing, "
            f"damaged or another file: evaluate again ({type(error).__name__})"
        ) from None
    if not whole:
        raise UserError(
            f"expected the checksum in {str(out / name)!r}, got another: the file is damaged, "
            f"take another copy or evaluate again"
        )
    return {**manifest, CHECKSUMS: expected}


def read_results(out: Path) -> tuple[list[Result], dict[str, Any]]:
    """Return the results of a folder, whose methods have no optimizers, and the manifest.

    Args:
        out: the folder.

    Raises:
        UserError: if a file is missing or damaged. If older files are whole, the message says so.
    """
    out = user_path(out)
    try:
        return _read(out, RESULTS, MANIFEST)
    except UserError as damage:
        try:
            _read(out, previous(RESULTS), previous(MANIFEST))
        except UserError:
            raise damage from None
        raise UserError(
            f"{damage}; {previous(RESULTS)} and {previous(MANIFEST)} beside it are whole: rename "
            f"both to go back to them"
        ) from None


def _read(out: Path, results: str, name: str) -> tuple[list[Result], dict[str, Any]]:
    manifest = read_manifest(out, name)
    path = out / results
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != manifest[CHECKSUMS].get(RESULTS):
        raise UserError(
            f"expected the results that {name} is of, got {str(path)!r}, which is missing, "
            f"damaged or of another run: take another copy or evaluate again"
        )
    with understood(out):
        parsed = _parsed(data, manifest)
    return parsed, manifest


@contextmanager
def understood(out: Path) -> Iterator[None]:
    """Use content of results inside this context, which may be some that :func:`save` never wrote.

    Args:
        out: the folder of the results, for the message.

    Raises:
        UserError: if it cannot be used.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as e:
        raise UserError(
            f"expected results of eval_meta.py in {str(out)!r}, got others with right checksums "
            f"({type(e).__name__}): evaluate again"
        ) from None


def _parsed(data: bytes, manifest: dict[str, Any]) -> list[Result]:
    read = [json.loads(line) for line in data.splitlines()]
    seconds = {method: facts["seconds_per_step"] for method, facts in manifest["methods"].items()}
    steps = manifest["config"]["steps"]
    return [
        Result(
            Method(method, _unknown, facts["rate"], facts["learned"], facts["checkpoint"] or {}),
            _trajectory([row for row in read if row["method"] == method], steps, seconds[method]),
            {
                name: [math.nan if value is None else value for value in own]
                for name, own in facts.get("held_out", {}).items()
            },
            facts.get("state_bytes", 0),
        )
        for method, facts in manifest["methods"].items()
    ]


def _trajectory(own: Sequence[dict[str, Any]], steps: int, seconds: float) -> Trajectory:
    """Return the trajectory of rows that are sorted by task, then by step."""

    def column(key: str) -> Tensor:
        values = [math.nan if row[key] is None else row[key] for row in own]
        return torch.tensor(values, dtype=torch.float64).view(-1, steps + 1).T

    return Trajectory(
        column("loss"), column("grad_norm"), column("defect"), column("refused").bool(), seconds
    )


def _unknown(problem: object, rate: float) -> torch.optim.Optimizer:
    raise UserError("expected a method to step with, got one read from results: name it instead")


def _text(manifest: dict[str, Any]) -> bytes:
    """Return a manifest as it is written."""
    return (json.dumps(manifest, indent=2) + "\n").encode()


def _digest(manifest: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest without its checksums."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def git_revision() -> str | None:
    """Return the git revision of the checkout that this package runs from, or None."""
    root = Path(__file__).resolve().parents[2]
    try:
        if Path(_git(root, "rev-parse", "--show-toplevel")).resolve() != root:
            return None  # installed inside somebody else's checkout
        return _git(root, "describe", "--always", "--dirty")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    """Run git on a checkout, whatever repository the environment names."""
    command = ["git", "-C", str(root), *arguments]
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or name.startswith("GIT_CONFIG_")
    }
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=10, check=True,
        env={**own, "GIT_OPTIONAL_LOCKS": "0"},
    )  # fmt: skip
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None  # run from a checkout that is not installed


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
