"""A training run in a folder: progress bar, TensorBoard curves, checkpoints, resumption.

Where several processes train together, only the first reads and writes the folder.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from metaopt.errors import Interrupted, UserError
from metaopt.launch import note_start
from metaopt.learned.checkpoint import (
    Checkpoint,
    checkpoint_bytes,
    read_checkpoint,
    write_checkpoint,
)
from metaopt.storage import locked, remove_leftovers
from metaopt.training.state import pack, pack_best, unpack
from metaopt.training.trainer import Trainer

LAST = "last.safetensors"
"""The file with all that a run needs to go on."""

BEST = "best.safetensors"
"""The file with the networks of the best validation score."""

PREVIOUS = "previous.safetensors"
CURVES = "tensorboard"


def run_training(
    trainer: Trainer,
    out: Path,
    resume: bool,
    overwrite: bool,
    stopped: Callable[[], int] = lambda: 0,
) -> bool:
    """Train to the end of the budget, and keep checkpoints in a folder.

    - ``last.safetensors`` holds all that is needed to go on, and the best networks too.
    - ``best.safetensors`` holds the best networks alone. It is written after ``last`` and can be
      made from it, so a kill between the two loses nothing.
    - ``previous.safetensors`` is the ``last`` before, in case that is damaged.

    Args:
        trainer: the run, fresh.
        out: the folder; it is created if needed.
        resume: go on with the run in the folder, if there is one.
        overwrite: delete the run in the folder, if there is one.
        stopped: called after each batch of tasks; returns the number of a signal, to end the run
            with a checkpoint, or 0.

    Returns:
        Whether the run in the folder was finished before.

    Raises:
        UserError: if another process writes the folder, if it holds a run and neither ``resume``
            nor ``overwrite`` is set, or if its checkpoint is damaged.
        Interrupted: if ``stopped`` returned a signal.
    """
    if overwrite and resume:
        raise UserError("expected --resume or --overwrite, got both: choose one")
    first = trainer.ranks.first
    with contextlib.ExitStack() as held:
        last = _last(trainer, out, resume, overwrite, held)
        if last is not None:
            unpack(trainer, last)
            if first:
                _restore_best(trainer, out)
            if trainer.finished:
                return True
        _train(trainer, out, stopped)
    return False


def _last(
    trainer: Trainer, out: Path, resume: bool, overwrite: bool, held: contextlib.ExitStack
) -> Checkpoint | None:
    """Return the checkpoint to go on from, the same in all processes; None to start anew.

    Args:
        trainer: the run, fresh.
        out: the folder.
        resume: whether to go on with a run in the folder.
        overwrite: whether to delete a run in the folder.
        held: takes over the lock of the folder, in the first process.
    """
    given = f"{trainer.meta.spec} {trainer.spec} {torch.__version__}"
    trainer.ranks.check_same(given, "config and torch")

    def prepare() -> bytes:
        held.enter_context(locked(out))
        if overwrite:
            for name in (LAST, PREVIOUS, BEST):
                (out / name).unlink(missing_ok=True)
            shutil.rmtree(out / CURVES, ignore_errors=True)
        remove_leftovers(out, (LAST, PREVIOUS, BEST))
        if not (out / LAST).exists():
            note_start(out)
            return b""
        if not resume:
            raise UserError(
                f"expected an --out without a run, got {str(out)!r}, which holds one: add "
                f"--resume to go on with it, or --overwrite to delete it"
            )
        _read(out)
        note_start(out)
        return (out / LAST).read_bytes()

    data = trainer.ranks.from_first(prepare)
    if not data:
        return None
    with tempfile.TemporaryDirectory() as folder:  # others may not see the run's own
        copy = Path(folder) / LAST
        copy.write_bytes(data)
        return read_checkpoint(copy)


def _read(out: Path) -> Checkpoint:
    """Return the last checkpoint; if it is damaged, the message offers the previous one."""
    try:
        return read_checkpoint(out / LAST)
    except UserError as damage:
        try:
            facts = read_checkpoint(out / PREVIOUS).facts
        except UserError:
            raise damage from None
        raise UserError(
            f"{damage}; {str(out / PREVIOUS)!r}, of {facts.get('trajectories')} trajectories, is "
            f"whole: move it to {LAST} and resume"
        ) from None


def _train(trainer: Trainer, out: Path, stopped: Callable[[], int]) -> None:
    spec, first = trainer.spec, trainer.ranks.first
    with contextlib.ExitStack() as stack:
        curves = None
        if first:
            start = trainer.trajectories + 1
            curves = stack.enter_context(SummaryWriter(str(out / CURVES), purge_step=start))
        bar = stack.enter_context(
            tqdm(
                total=spec.trajectories,
                initial=trainer.trajectories,
                unit="trajectory",
                mininterval=0.5 if sys.stderr.isatty() else 30.0,  # a log file wants few lines
                disable=not first,
            )
        )
        while not trainer.finished:
            before = trainer.trajectories
            numbers = trainer.train_batch()
            due = trainer.trajectories // spec.validation_every > before // spec.validation_every
            if due or trainer.finished:
                numbers |= trainer.validate()
            signal = trainer.ranks.most(stopped())
            if first and (due or trainer.finished or signal):
                _write(trainer, out)
            if curves is not None:
                for name, value in numbers.items():
                    curves.add_scalar(name, value, trainer.trajectories)
            bar.update(trainer.trajectories - before)
            bar.set_postfix(loss=f"{numbers['final_loss']:.2e}", skipped=trainer.skipped)
            if signal and not trainer.finished:
                raise Interrupted(signal, f"at trajectory {trainer.trajectories}, which is kept")


def _write(trainer: Trainer, out: Path) -> None:
    write_checkpoint(out / LAST, *pack(trainer), keep=out / PREVIOUS)
    if trainer.best:
        write_checkpoint(out / BEST, *pack_best(trainer))


def _restore_best(trainer: Trainer, out: Path) -> None:
    """Write ``best`` again if a kill between the two writes, or a user, left it out of step."""
    best = pack_best(trainer)
    path = out / BEST
    if trainer.best and not (path.exists() and path.read_bytes() == checkpoint_bytes(*best)):
        write_checkpoint(path, *best)
