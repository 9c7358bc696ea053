"""What the command lines of the studies share."""

from __future__ import annotations

from metaopt.cli.common import Parser


def study_parser(module: str, description: str | None) -> Parser:
    """Of ``python -m studies.MODULE``: ``--out``, ``--quick``, ``--threads``."""
    parser = Parser(prog=f"python -m studies.{module}", description=description)
    parser.add_argument("--out", type=str, default=f"runs/{module}", help="folder of the study")
    parser.add_switch("--quick", "a minute's worth of it, to see that it runs")
    parser.add_threads()
    return parser


def add_jobs(parser: Parser) -> None:
    """``--jobs``, for studies that train."""
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
