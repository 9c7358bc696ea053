"""A training run in a folder: progress, curves, checkpoints, resumption."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from metaopt.errors import UserError
from metaopt.learned.checkpoint import checkpoint_bytes, read_checkpoint, write_checkpoint
from metaopt.training.state import pack, pack_best, unpack
from metaopt.training.trainer import Trainer

LAST = "last.safetensors"
BEST = "best.safetensors"
CURVES = "tensorboard"


def run_training(trainer: Trainer, out: Path, resume: bool, overwrite: bool) -> bool:
    """Train to the end of the budget, leaving ``best`` and ``last`` checkpoints in ``out``.

    ``last`` holds all that is needed to go on, the best networks among it; ``best`` is written
    from it and after it, so a kill between the two loses nothing.

    Returns:
        Whether the run was finished before.

    Raises:
        UserError: if ``out`` holds a run and neither ``resume`` nor ``overwrite`` was asked for.
    """
    last = out / LAST
    if overwrite and resume:
        raise UserError("expected --resume or --overwrite, got both: choose one")
    if overwrite:
        for path in (last, out / BEST):
            path.unlink(missing_ok=True)
        shutil.rmtree(out / CURVES, ignore_errors=True)
    elif last.exists():
        if not resume:
            raise UserError(
                f"expected an --out without a run, got {str(out)!r}, which holds one: add "
                f"--resume to go on with it or --overwrite to lose it"
            )
        unpack(trainer, read_checkpoint(last))
        _restore_best(trainer, out)
        if trainer.finished:
            return True
    out.mkdir(parents=True, exist_ok=True)
    for stale in (*out.glob(f".{LAST}.*"), *out.glob(f".{BEST}.*")):
        stale.unlink()  # of a write that was killed
    spec = trainer.spec
    curves = SummaryWriter(str(out / CURVES), purge_step=trainer.trajectories + 1)
    with (
        curves,
        tqdm(
            total=spec.trajectories,
            initial=trainer.trajectories,
            unit="trajectory",
            mininterval=0.5 if sys.stderr.isatty() else 30.0,  # a log file wants few lines
        ) as bar,
    ):
        while not trainer.finished:
            before = trainer.trajectories
            numbers = trainer.train_batch()
            due = trainer.trajectories // spec.validation_every > before // spec.validation_every
            if due or trainer.finished:
                numbers |= trainer.validate()
                write_checkpoint(last, *pack(trainer))
                write_checkpoint(out / BEST, *pack_best(trainer))
            for name, value in numbers.items():
                curves.add_scalar(name, value, trainer.trajectories)
            bar.update(trainer.trajectories - before)
            bar.set_postfix(loss=f"{numbers['final_loss']:.2e}", skipped=trainer.skipped)
    return False


def _restore_best(trainer: Trainer, out: Path) -> None:
    """Write ``best`` again where a kill between the two writes, or a user, left it out of step."""
    best = pack_best(trainer)
    path = out / BEST
    if trainer.best and not (path.exists() and path.read_bytes() == checkpoint_bytes(*best)):
        write_checkpoint(path, *best)
