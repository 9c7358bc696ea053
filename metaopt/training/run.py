"""A training run in a folder: progress, TensorBoard curves, checkpoints, resumption.

Where several processes train together, only the first reads and writes the folder.
"""

from __future__ import annotations

import contextlib
import math
import os
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from metaopt.errors import Interrupted, UserError
from metaopt.launch import note_start
from metaopt.learned.checkpoint import (
    Checkpoint,
    checkpoint_bytes,
    named_checkpoint,
    parse_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from metaopt.storage import locked, remove_leftovers, user_path
from metaopt.training.progress import Progress, note
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
    init_from: str = "",
) -> bool:
    """Train to the end of the budget, and keep checkpoints in a folder.

    - ``last.safetensors`` holds all that is needed to go on, and the best networks too.
    - ``best.safetensors`` holds the best networks alone. It is written after ``last`` and can be
      made from it, so a kill between the two loses nothing.
    - ``previous.safetensors`` is the ``last`` before, in case that is damaged.

    A run that is gone on with may have another budget, if that is not spent: so a finished run is
    made longer. Where the learning rates do not follow the budget, the result is that of a run that
    had this budget from the start.

    Args:
        trainer: the run, fresh.
        out: the folder; it is created if needed.
        resume: go on with the run in the folder, if there is one.
        overwrite: delete the run in the folder, if there is one, once a first batch is trained on.
        stopped: called after each batch of tasks; returns the number of a signal, to end the run
            with a checkpoint, or 0.
        init_from: name of a shipped optimizer, or path of a checkpoint, whose networks a new run
            begins with, if any.

    Returns:
        Whether the run in the folder was finished before.

    Raises:
        UserError: if another process writes the folder, if it holds a run and neither ``resume``
            nor ``overwrite`` is set, if its checkpoint is damaged or of another config, if
            ``init_from`` has other networks, or at the end if no meta-step was taken at all.
        Interrupted: if ``stopped`` returned a signal.
    """
    if overwrite and resume:
        raise UserError("expected --resume or --overwrite, got both: choose one")
    out = user_path(out)
    with contextlib.ExitStack() as held:
        last = _last(trainer, out, resume, overwrite, init_from, held)
        if last is not None:
            _go_on(trainer, out, last, init_from)
            if trainer.finished:
                _check_learned(trainer)
                return True
        elif init_from:
            _warm_start(trainer, init_from)
        if trainer.ranks.first:
            _say_parts(trainer, resumed=last is not None)
        begin = (lambda: None) if last is not None else (lambda: _begin(out, overwrite))
        _train(trainer, out, stopped, begin)
    _check_learned(trainer)
    return False


def _check_learned(trainer: Trainer) -> None:
    """Check that a finished run took a meta-step; its files stay where it took none."""
    if trainer.skipped and not trainer.meta_steps:
        raise UserError(
            f"expected finite meta-gradients, got none in all {trainer.skipped} meta-steps of the "
            f"run: {BEST} holds the networks as they began; lower --steps or --window, or mend "
            "the loss, and start again with --overwrite"
        )


def _last(
    trainer: Trainer,
    out: Path,
    resume: bool,
    overwrite: bool,
    init_from: str,
    held: contextlib.ExitStack,
) -> Checkpoint | None:
    """Return the checkpoint to go on from, the same in all processes; None to start anew.

    Args:
        trainer: the run, fresh.
        out: the folder.
        resume: whether to go on with a run in the folder.
        overwrite: whether a run in the folder is of no use.
        init_from: see :func:`run_training`.
        held: takes over the lock of the folder, in the first process.
    """
    given = f"{trainer.meta.spec} {trainer.spec} {init_from} {torch.__version__}"
    trainer.ranks.check_same(given, "config and torch")

    def prepare() -> bytes:
        held.enter_context(locked(out))
        remove_leftovers(out, (LAST, PREVIOUS, BEST))
        if overwrite or not (out / LAST).exists():
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
    return parse_checkpoint(data, LAST) if data else None


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


def _warm_start(trainer: Trainer, source: str) -> None:
    """Begin with the networks of a checkpoint, which the first process reads."""

    def read() -> bytes:
        checkpoint = named_checkpoint(source)
        trainer.warm_start(checkpoint, source)
        return checkpoint_bytes(*checkpoint)

    data = trainer.ranks.from_first(read)
    if not trainer.ranks.first:
        trainer.warm_start(parse_checkpoint(data, source), source)


def _go_on(trainer: Trainer, out: Path, last: Checkpoint, init_from: str) -> None:
    """Give a fresh trainer the state of the last checkpoint, and say what is not as it was."""
    unpack(trainer, last)
    begun = trainer.origin.get("init_from", {}).get("source", "fresh networks")
    if init_from not in ("", begun):
        raise UserError(
            f"expected a run that began with {init_from!r}, got one that began with {begun!r} in "
            f"{str(out)!r}: leave --init_from out to go on with it, or use another --out"
        )
    if (before := last.facts["training"]["trajectories"]) != trainer.spec.trajectories:
        line = _change_length(trainer, out, before)
        if trainer.ranks.first:
            note(line)
    if trainer.ranks.first:
        _restore_best(trainer, out)


def _change_length(trainer: Trainer, out: Path, before: int) -> str:
    """Take back a validation that a run of the new length has not, and return what to say."""
    spec, done = trainer.spec, trainer.trajectories
    line = f"the run goes on from trajectory {done} to {spec.trajectories}, instead of {before}"
    if "budgets" in trainer.origin:
        then, now = replace(spec, trajectories=before).rates(done)[0], spec.rates(done)[0]
        return (
            f"{line}; the {spec.schedule} schedule follows the length: the rate of m1 is now "
            f"{now:.2g} instead of {then:.2g}, and the result is not that of a run of this length "
            "from the start"
        )
    if done < before or trainer.due:
        return line

    def read() -> bytes:
        if not (out / PREVIOUS).exists():
            return b""
        read_checkpoint(out / PREVIOUS)
        return (out / PREVIOUS).read_bytes()

    previous = trainer.ranks.from_first(read)
    if previous:
        unpack(trainer, parse_checkpoint(previous, PREVIOUS))
        if trainer.ranks.first:
            os.replace(out / PREVIOUS, out / LAST)
    elif done < spec.validation_every:  # there was no other
        trainer.best, trainer.best_state, trainer.best_score = {}, {}, math.inf
        if trainer.ranks.first:
            write_checkpoint(out / LAST, *pack(trainer))
    else:
        return f"{line}; the validation at {done} counts, as {PREVIOUS} is missing"
    return (
        f"{line}; what came of the validation at {done}, which a run of that length has not, is "
        f"taken back, and training goes on from trajectory {trainer.trajectories}"
    )


def _say_parts(trainer: Trainer, resumed: bool) -> None:
    """Say how the processes share the batches, where that is not plain."""
    spec, parts, size = trainer.spec, trainer.parts, trainer.ranks.size
    if resumed and not spec.micro_batch and parts != size:
        note(
            f"parts of a batch: {parts}, as at the start of the run; with {size} processes it ends "
            "with the same bytes"
        )
    elif "parts" in trainer.origin:
        draws = "as with another seed" if spec.gradient_estimator.draws else "by rounding"
        note(
            f"parts of a batch: {parts}, one a process; other numbers of processes differ {draws}, "
            f"with --micro_batch {max(1, spec.batch_size // parts)} they do not"
        )
    if parts > spec.batch_size:
        note(
            f"a batch has {spec.batch_size} tasks of width 20, or as many weights in others: where "
            "it has fewer tasks than parts, processes wait; a larger --batch_size gives them work"
        )
    if size > parts:
        note(
            f"{size - parts} of {size} processes have nothing to do, as a batch is in {parts} "
            "parts: start fewer, or a new run with a smaller --micro_batch"
        )


def _begin(out: Path, overwrite: bool) -> None:
    """Make room for a new run in its folder."""
    curves = (out / CURVES).glob("events.out.tfevents.*")
    old = [out / LAST, out / BEST, *curves] if overwrite else []
    for path in [*old, out / PREVIOUS]:
        path.unlink(missing_ok=True)
    note_start(out)


def _train(
    trainer: Trainer, out: Path, stopped: Callable[[], int], begin: Callable[[], None]
) -> None:
    """Train to the end of the budget.

    Args:
        trainer: the run, fresh or gone on with.
        out: its folder.
        stopped: see :func:`run_training`.
        begin: called before anything is written into the folder.
    """
    first, start = trainer.ranks.first, trainer.trajectories
    if first:
        folder = shlex.quote(str(out / CURVES))
        note(f"training in {str(out)!r}; to see its curves: tensorboard --logdir {folder}")
    with contextlib.ExitStack() as stack:
        progress = Progress(trainer, first)
        stack.callback(progress.close)
        curves: SummaryWriter | None = None

        def keep(numbers: dict[str, float], written: bool) -> None:
            nonlocal curves
            if not first:
                return
            if curves is None:
                begin()
                curves = SummaryWriter(str(out / CURVES), purge_step=start + 1)
                stack.enter_context(curves)
            if written:
                _write(trainer, out)
            for name, value in numbers.items():
                curves.add_scalar(name, value, trainer.trajectories)

        if "init_from" in trainer.origin and not start:
            scored = trainer.validate()  # so that the best is no worse than what it began with
            keep(scored, True)
            if first:
                note(f"validation score at the start: {scored['score']:.3f}")
        while not trainer.finished:
            numbers = trainer.train_batch()
            if trainer.due or trainer.finished:
                numbers |= trainer.validate()
            signal = trainer.ranks.most(stopped())
            keep(numbers, bool("score" in numbers or signal))
            progress.show(numbers)
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
