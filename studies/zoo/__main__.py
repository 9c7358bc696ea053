"""Small full-batch networks of every usual kind: the learned optimizer against tuned rivals.

    python -m studies.zoo --out runs/zoo [--cells N] [--learned NAME=CHECKPOINT ...] [--quick]

324 cells: biases or none, six activations, two to four layers, three numbers of samples and three
kinds of targets, eight networks each, in a random order. Rivals have the best of up to ten
settings for each cell and step. What is done is kept, so it goes on where it was killed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from metaopt.cli.common import guarded, set_threads
from metaopt.errors import UserError
from metaopt.extras import installed
from studies.command import study_parser
from studies.report import write_text
from studies.zoo import report
from studies.zoo.cells import CELLS, shuffled
from studies.zoo.figure import zoo_figure
from studies.zoo.rivals import Contender, contenders
from studies.zoo.runs import measure

OPTIMIZERS = ("lstm_update_tele", "lstm_whitened")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments, measure the cells, and write the tables and the figure."""
    parser = study_parser("zoo", __doc__)
    parser.add_argument(
        "--cells", type=int, default=len(CELLS), help="how many cells, in a random order"
    )
    parser.add_argument(
        "--learned", type=str, nargs="*", default=list(OPTIMIZERS),
        help="shipped optimizers, or NAME=CHECKPOINT; the first is compared; none: rivals alone",
    )  # fmt: skip
    values = parser.parse_args(arguments)
    set_threads(values.threads)
    if not 1 <= values.cells <= len(CELLS):
        raise UserError(f"expected 1 to {len(CELLS)} cells, got {values.cells}: leave it out")
    learned = dict(own.partition("=")[::2] for own in values.learned)
    learned = {name: source or name for name, source in learned.items()}
    methods = contenders(learned, soap=installed("pytorch_optimizer"))
    out, cells = Path(values.out), shuffled()[: 2 if values.quick else values.cells]
    for cell in tqdm(cells, unit="cell"):
        measure(cell, methods, out / "cells" / f"{cell.name}.json", values.quick)
    if learned and not values.quick:
        write_report(out, methods, list(learned))


def write_report(out: Path, methods: dict[str, Contender], learned: list[str]) -> None:
    """Write the tables and the figure of the cells that are done, and print the tables.

    Args:
        out: the folder of the study.
        methods: the methods.
        learned: the names of the learned optimizers.
    """
    measured = report.read(out, shuffled())
    tables = {
        "zoo": report.summary(measured, methods, learned),
        "zoo_methods": report.methods(measured, methods),
        "zoo_lost": report.lost(measured, methods, learned[0]),
    }
    for name, table in tables.items():
        write_text(out / "tables" / f"{name}.md", table)
        print(table)
    (out / "zoo.png").write_bytes(zoo_figure(measured, methods, learned[0]))


if __name__ == "__main__":
    sys.exit(guarded(main)())
