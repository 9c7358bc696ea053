"""Flags that the benchmarks share: whole numbers, and torch's threads."""

from __future__ import annotations

import argparse

import torch


def integers(parser: argparse.ArgumentParser, **defaults: int) -> None:
    """``--NAME`` for each default."""
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)


def parse(description: str | None, **defaults: int) -> argparse.Namespace:
    """The options of a benchmark that takes whole numbers alone; torch has its threads."""
    parser = argparse.ArgumentParser(description=description)
    integers(parser, **defaults)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options
