"""Tests of faults and scale have a short form, and a long one under METAOPT_SOAK=1, `make soak`."""

import os
import subprocess
import sys
from pathlib import Path
from typing import TypeVar

from metaopt.cli import train

ROOT = Path(__file__).parents[1]
SOAK = os.environ.get("METAOPT_SOAK") == "1"
TRAIN = ROOT / "train_meta.py"
EVAL = ROOT / "eval_meta.py"
FILES = ("last.safetensors", "best.safetensors", "previous.safetensors")
FLAGS = {
    "hidden": "4", "widths": "[4,6]", "steps": "4", "window": "2", "batch_size": "4",
    "micro_batch": "1", "trajectories": "48", "validation_every": "8",
    "validation_problems": "4", "validation_at": "[2,4]", "validation_families": "[width_8]",
}  # fmt: skip
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}

Value = TypeVar("Value")

LONG = {"trajectories": "72", "validation_every": "36"}
"""Flags of a training without a checkpoint in its first second."""


def form(short: Value, long: Value) -> Value:
    return long if SOAK else short


def flags(out: Path, *switches: str, **changed: str) -> list[str]:
    """Of a training that takes a second or two, besides its imports."""
    values = {**FLAGS, **changed, "out": str(out)}
    return [*(part for k, v in values.items() for part in (f"--{k}", v)), *switches]


def start(*command: str, **options) -> subprocess.Popen[str]:
    """A Python command in a process of its own."""
    pipe = subprocess.PIPE
    options = {"stdout": pipe, "stderr": pipe, "text": True, "env": ENVIRONMENT, **options}
    return subprocess.Popen([sys.executable, *command], **options)


def train_here(out: Path, *switches: str, **changed: str) -> None:
    """A training in this process, which has imported everything."""
    train.main(flags(out, *switches, **changed))


def contents(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in FILES if (out / name).exists()}
