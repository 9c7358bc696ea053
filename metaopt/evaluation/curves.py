"""TensorBoard curves of an evaluation: one folder for each method, below ``tensorboard``."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from metaopt.errors import UserError
from metaopt.evaluation.evaluate import Result
from metaopt.evaluation.results import MANIFEST, previous, read_manifest
from metaopt.evaluation.statistics import FLOOR
from metaopt.extras import extra

CURVES = "tensorboard"
LONGEST = 150  # bytes of a folder's name
EVENTS = "events.out.tfevents.*"


def summary_writer() -> Any:
    """Return the class ``SummaryWriter``.

    Raises:
        MissingExtra: if tensorboard is not installed.
    """
    with extra("train"):
        from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter


def write_curves(out: Path, results: Sequence[Result]) -> None:
    """Write the mean log10 loss over tasks of each method as TensorBoard scalars.

    Args:
        out: the folder of the results.
        results: of all methods, one TensorBoard run each.
    """
    for result, name in zip(results, folder_names([r.method.name for r in results]), strict=True):
        with summary_writer()(str(out / CURVES / name)) as writer:
            logs = result.trajectory.losses.clamp(min=FLOOR).log10().mean(dim=1)
            for step, value in enumerate(logs.tolist()):
                writer.add_scalar("log10_loss", value, step)


def remove_curves(out: Path) -> None:
    """Remove the curves of the methods that the manifest, or the one before, lists.

    Files that no evaluation has written stay, with their folders.

    Args:
        out: the folder of the results.
    """
    for name in (MANIFEST, previous(MANIFEST)):
        try:
            methods = read_manifest(out, name)["methods"]
        except UserError:  # missing or damaged: it lists nothing
            continue
        for folder in folder_names(list(methods)):
            for path in (out / CURVES / folder).glob(EVENTS):
                path.unlink()
            with suppress(OSError):  # not empty, or not there
                (out / CURVES / folder).rmdir()
    with suppress(OSError):
        (out / CURVES).rmdir()


def folder_names(names: Sequence[str]) -> list[str]:
    """Return the name of a folder for each method; no two are the same on any file system.

    It is the method's name, with ``_`` for what a folder's name may not have. Where that is too
    long, or differs from another in capital letters alone, it ends with a part of a checksum.

    Args:
        names: names of methods, which are paths for checkpoints of users.

    Example:
        >>> folder_names(["adam@0.1", "runs/a/best.safetensors", "runs_a_best.safetensors"])
        ['adam@0.1', 'runs_a_best.safetensors-f3ae5783', 'runs_a_best.safetensors-6c61bc25']
    """
    plain = [re.sub(r'[/\\:*?"<>|\x00-\x1f]', "_", name) for name in names]
    alike = [unicodedata.normalize("NFKC", name).casefold() for name in plain]
    return [
        folder
        if alike.count(form) == 1 and len(os.fsencode(folder)) <= LONGEST
        else f"{_end(folder)}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"
        for name, folder, form in zip(names, plain, alike, strict=True)
    ]


def _end(name: str) -> str:
    """Return the end of a name, which has the file's own name, in few enough bytes."""
    return os.fsencode(name)[-(LONGEST - 9) :].decode(errors="ignore")
