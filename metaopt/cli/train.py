"""``train_meta.py``: meta-train a learned optimizer from a config."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metaopt.cli.common import (
    Parser,
    guarded,
    parse,
    pick_device,
    set_threads,
    take,
)
from metaopt.cli.signals import noted
from metaopt.errors import Interrupted
from metaopt.launch import joined, launcher_ended, restarted
from metaopt.learned.spec import MetaOptimizerSpec
from metaopt.tasks import TaskFamily
from metaopt.tasks.named_task import named_task
from metaopt.training.progress import note
from metaopt.training.run import BEST, LAST, run_training
from metaopt.training.spec import TrainingSpec
from metaopt.training.trainer import Trainer


def build_parser() -> Parser:
    """Return the parser of ``train_meta.py``; each field of a config is a flag."""
    parser = Parser(
        prog="train_meta.py",
        description="Train a learned optimizer: m1, the network that proposes updates, and m2, the "
        "network that proposes group elements. Configs that make the shipped optimizers are in "
        "configs/. Writes best.safetensors, last.safetensors and TensorBoard curves into --out.",
    )
    parser.add_run("runs/train", "checkpoints and curves")
    parser.add_switch(
        "--resume",
        "go on with the run in --out; start it if there is none; a larger --trajectories makes the "
        "run longer",
    )
    parser.add_switch("--overwrite", "delete the run in --out and start anew")
    parser.add_flag(
        "--init_from",
        "",
        "begin with the networks of a shipped optimizer, by its name, or of a checkpoint, by the "
        "path of its .safetensors file; they need the same update and element as this run",
    )
    parser.add_settings(TrainingSpec)
    parser.add_settings(MetaOptimizerSpec)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``train_meta.py``: parse the flags, build, run, save.

    Under torchrun this is one of several processes.

    Args:
        arguments: the command line; None for that of the process.
    """
    values = parse(build_parser, arguments)
    set_threads(values.threads)
    device = pick_device(values.device)
    if values.task:
        _step_any_module(values)
    networks, spec = take(MetaOptimizerSpec, values), take(TrainingSpec, values)
    out = Path(values.out)
    again = restarted(out)  # with what this same command had saved before it failed
    resume, overwrite = values.resume or again, values.overwrite and not again
    with joined(device, values.timeout) as ranks, noted() as came:

        def stopped() -> int:
            return came() or (signal.SIGTERM if launcher_ended() else 0)

        trainer = Trainer(networks, spec, ranks, device)
        if resume and ranks.first and not (out / LAST).exists():
            note(f"no checkpoint to resume in {str(out)!r}: starting anew")
        try:
            done_before = run_training(trainer, out, resume, overwrite, stopped, values.init_from)
        except Interrupted as end:
            if ranks.first:
                raise
            raise SystemExit(128 + end.signal) from None  # one line for all
    if not ranks.first:
        return
    if done_before:
        print(f"the run in {out} was finished already; nothing was trained")
    task = values.task
    if task and isinstance(named_task(task), TaskFamily):
        task = "MODULE:TASK"  # one of the family's, which the user has to choose
    print(f"best validation score (mean log10 loss): {trainer.best_score:.3f}")
    print(f"skipped meta-steps: {trainer.skipped} of {trainer.skipped + trainer.meta_steps}")
    print(f"checkpoints: {out / BEST}, {out / LAST}")
    print(f"to evaluate it: {shlex.join(evaluation(out, values['import'], task))}")


def _step_any_module(values: Any) -> None:
    """Train on the tasks of --task, with rules that can step them where none were chosen."""
    values["problems"] = "task"
    default = MetaOptimizerSpec()
    if (values["update"], values["element"]) == (default.update, default.element):
        values["update"], values["element"] = "layerwise", "none"
        note("--task without --update: update layerwise, element none, which step any module")


def evaluation(out: Path, modules: Sequence[str], task: str = "") -> list[str]:
    """Return the command that evaluates a run, as one types it where this command was typed.

    Args:
        out: the folder of the run.
        modules: the extensions that the run needs.
        task: the task of a user's own that it was trained on, if any.
    """
    script = Path(sys.argv[0])
    command = ["metaopt-eval"]
    if script.name == "train_meta.py":
        command = [sys.orig_argv[0], str(script.with_name("eval_meta.py"))]
    for module in modules:
        command += ["--import", module]
    rival = "adam"
    if task:
        command += ["--task", task]
        rival = "adamw"
    return [*command, "--methods", f"{out / BEST},{rival}", "--out", str(out / "eval")]


HINT = " with --resume to go on from the last checkpoint"

entry = guarded(main, HINT)
