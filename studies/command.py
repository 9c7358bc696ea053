"""The arguments that the commands of all studies have."""

from __future__ import annotations

from metaopt.cli.common import Parser


def study_parser(module: str, description: str | None) -> Parser:
    """Make the parser of ``python -m studies.MODULE``, with the arguments of all studies.

    These are ``--out``, ``--quick`` and ``--threads``.

    Args:
        module: the name of the study.
        description: what ``--help`` says of it.
    """
    parser = Parser(prog=f"python -m studies.{module}", description=description)
    parser.add_argument("--out", type=str, default=f"runs/{module}", help="folder of the study")
    parser.add_switch("--quick", "a minute's worth of it, to see that it runs")
    parser.add_threads()
    return parser


def add_jobs(parser: Parser) -> None:
    """Add ``--jobs`` to the parser of a study that trains."""
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
