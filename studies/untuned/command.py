"""What the commands of untuned runs share: their arguments, what these mean, and their tables."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from metaopt.checks import check_whole
from metaopt.cli.common import Parser, set_threads
from studies.command import study_parser
from studies.report import write_text
from studies.suite.protocol import OPEN, Contender
from studies.untuned.runs import Extent, contenders

LEARNED = "lstm_layerwise"


def untuned_parser(module: str, description: str | None, steps: int) -> Parser:
    """Make the parser of a study of untuned runs.

    Args:
        module: the name of the study.
        description: what ``--help`` says of it.
        steps: of a run, where the user names none.
    """
    parser = study_parser(module, description)
    parser.add_argument(
        "--methods", type=str, default=f"{LEARNED},{LEARNED}{OPEN}", help="names, commas between"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each method on each network")
    parser.add_argument("--steps", type=int, default=steps, help="of a run")
    return parser


def asked(
    values: Namespace, rivals: Sequence[str], least: int, quick_steps: int
) -> tuple[list[Contender], Extent]:
    """Return the methods that a user asked for, with the rivals, and how much is run.

    Args:
        values: the arguments.
        rivals: methods that are always there.
        least: the fewest steps.
        quick_steps: steps of a run with ``--quick``.

    Raises:
        UserError: for a number that is too small, or a method that is unknown.
    """
    set_threads(values.threads)
    check_whole("--seeds", values.seeds)
    check_whole("--steps", values.steps, least)
    methods = contenders([*values.methods.split(","), *rivals])
    if values.quick:
        return methods, Extent(quick_steps, 1, quick=True)
    return methods, Extent(values.steps, values.seeds)


def write_tables(tables: Mapping[str, str], out: Path) -> None:
    """Write and print tables.

    Args:
        tables: by name.
        out: the folder of the study.
    """
    for name, table in tables.items():
        write_text(out / "tables" / f"{name}.md", table)
        print(table)
