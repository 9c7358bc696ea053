"""Four networks that people have, untuned: learned optimizers beside AdamW at five rates.

    python -m studies.untuned --out runs/untuned --data-dir DATA [--methods NAME,NAME] [--quick]

ResNet-18, MobileNetV3-small and ViT-tiny on CIFAR-10, and a GPT of 12 layers on the sources of
Python's standard library: 60 steps of 32 samples each. A method is a shipped optimizer or a
.safetensors file, which with :open at its end is not told how many steps there will be, or an
ordinary optimizer at a rate (muon@0.01). AdamW at five constant rates, Muon and the former
lstm_layerwise are always there. What is done is kept, so it goes on where it was killed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from metaopt.cli.common import guarded
from studies.suite.kept import Log
from studies.untuned.command import asked, untuned_parser, write_tables
from studies.untuned.report import ADAMW, tables
from studies.untuned.runs import LAST, measure
from studies.untuned.tasks import subjects

FORMER = "lstm_layerwise_v1"
RIVALS = (*ADAMW, "muon@0.01", FORMER)
QUICK_STEPS = 6


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments, make the runs that are left, and write and print the tables."""
    parser = untuned_parser("untuned", __doc__, steps=60)
    parser.add_argument(
        "--data-dir", type=str, default="", help="has the folder cifar10 (else $METAOPT_DATA)"
    )
    values = parser.parse_args(arguments)
    methods, extent = asked(values, RIVALS, LAST, QUICK_STEPS)
    out = Path(values.out)
    networks = subjects(values.data_dir or None, extent.quick)
    records = measure(methods, extent, networks, Log(out / "runs.jsonl"))
    write_tables(tables(records), out)


if __name__ == "__main__":
    sys.exit(guarded(main)())
