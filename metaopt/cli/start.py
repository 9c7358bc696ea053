"""Entry points of the two installed commands, which need the extra ``train``."""

from __future__ import annotations

import sys
from importlib import import_module

from metaopt.cli.streams import steady
from metaopt.extras import MissingExtra, extra


def train() -> int:
    """Run ``metaopt-train``, that is ``train_meta.py``, and return its exit code."""
    return _run("metaopt.cli.train")


def evaluate() -> int:
    """Run ``metaopt-eval``, that is ``eval_meta.py``, and return its exit code."""
    return _run("metaopt.cli.evaluate")


def _run(module: str) -> int:
    with steady():
        try:
            with extra("train"):
                command = import_module(module)
        except MissingExtra as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        code: int = command.entry()
        return code
