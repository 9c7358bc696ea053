"""``train_meta.py``: meta-train a learned optimizer from a config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metaopt.cli.common import Parser, guarded, set_threads, take
from metaopt.learned.meta_optimizer import MetaOptimizerSpec
from metaopt.training.run import run_training
from metaopt.training.spec import TrainingSpec
from metaopt.training.trainer import Trainer


def build_parser() -> Parser:
    """Every field of both specs is a flag, and a key of the config file."""
    parser = Parser(
        prog="train_meta.py",
        description="Meta-train m1 and m2 on regression problems; see configs/.",
    )
    parser.add_argument("--config", action="config", help="a YAML file of configs/")
    parser.add_argument("--out", type=str, default="runs/train", help="folder of this run")
    parser.add_switch("--resume", "go on with the run in --out, or start it if there is none")
    parser.add_switch("--overwrite", "lose the run in --out")
    parser.add_threads()
    parser.add_class_arguments(TrainingSpec)
    parser.add_class_arguments(MetaOptimizerSpec)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, build, run, save."""
    values = build_parser().parse_args(arguments)
    set_threads(values.threads)
    trainer = Trainer(take(MetaOptimizerSpec, values), take(TrainingSpec, values))
    done_before = run_training(trainer, Path(values.out), values.resume, values.overwrite)
    if done_before:
        print(f"the run in {values.out} was finished already; nothing was trained")
    print(f"best validation score (mean log10 loss): {trainer.best_score:.3f}")
    print(f"skipped meta-steps: {trainer.skipped} of {trainer.skipped + trainer.meta_steps}")
    print(f"checkpoints: {values.out}/best.safetensors, {values.out}/last.safetensors")


HINT = " with --resume to go on from the last checkpoint"

entry = guarded(main, HINT)
