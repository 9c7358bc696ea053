"""``python -m metaopt.cli.sweep``: find the best learning rate of each baseline."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence

from metaopt.checks import check_names, check_whole
from metaopt.cli.common import Parser, guarded, parse, set_threads
from metaopt.evaluation.methods import BASELINES, chain_methods
from metaopt.evaluation.progress import progress
from metaopt.evaluation.sweep import RATES, diverged, lowest_rate, sweep
from metaopt.tasks import RegressionFamily


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(
        prog="python -m metaopt.cli.sweep",
        description="Find the best learning rate of each baseline on validation tasks.",
    )
    known = (name for name in chain_methods() if name in BASELINES)
    chosen = ",".join(name for name in known if BASELINES[name].rate is not None)
    parser.add_flag("--methods", chosen, "baselines to sweep, separated by commas")
    parser.add_flag("--problems", 32, "number of validation tasks")
    parser.add_flag("--steps", 100, "optimization steps of each run; the last loss counts")
    parser.add_import()
    parser.add_threads()
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one JSON line for each method: its best learning rate, and its losses at all rates.

    A loss of null is of a run that diverged.

    Args:
        arguments: the command line; None for that of the process.

    Raises:
        UserError: at the end, for methods that diverged at all rates.
    """
    values = parse(build_parser, arguments)
    set_threads(values.threads)
    check_whole("--steps", values.steps)
    names = list(dict.fromkeys(name for name in values.methods.split(",") if name))
    check_names("methods", names, BASELINES)
    lost = []
    with progress("sweep", len(names) * len(RATES)) as advance:
        for name in names:
            losses = {}
            for run in sweep([name], RegressionFamily(), values.problems, values.steps):
                losses[run.rate] = run.loss
                advance()
            shown = {f"{k:g}": v if math.isfinite(v) else None for k, v in losses.items()}
            if set(shown.values()) == {None}:
                lost.append(name)
                continue
            rate = lowest_rate(name, losses)
            print(json.dumps({"method": name, "best": rate, "loss_at": shown}), flush=True)
    if lost:
        raise diverged(", ".join(lost), RATES)


if __name__ == "__main__":
    sys.exit(guarded(main, printed=True)())
