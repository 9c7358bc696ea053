"""``python -m metaopt.cli.sweep``: find the best learning rate of each baseline."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence

from tqdm import tqdm

from metaopt.checks import check_choice, check_whole
from metaopt.cli.common import Parser, guarded, import_extensions, set_threads
from metaopt.evaluation.methods import BASELINES
from metaopt.evaluation.sweep import RATES, best, sweep
from metaopt.tasks import RegressionFamily


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one JSON line for each method: its best learning rate, and its losses at all rates.

    Args:
        arguments: the command line; None for that of the process.
    """
    import_extensions(arguments)
    parser = Parser(
        prog="python -m metaopt.cli.sweep",
        description="Find the best learning rate of each baseline on validation tasks.",
    )
    chosen = ",".join(name for name, method in BASELINES.items() if method.rate is not None)
    parser.add_flag("--methods", chosen, "baselines to sweep, separated by commas")
    parser.add_flag("--problems", 32, "number of validation tasks")
    parser.add_flag("--steps", 100, "optimization steps of each run; the last loss counts")
    parser.add_import()
    parser.add_threads()
    values = parser.parse_args(arguments)
    set_threads(values.threads)
    check_whole("--steps", values.steps)
    names = [name for name in values.methods.split(",") if name]
    for name in names:
        check_choice("methods", name, BASELINES)
    swept = list(
        tqdm(
            sweep(names, RegressionFamily(), values.problems, values.steps),
            total=len(names) * len(RATES),
            unit="run",
        )
    )
    for winner in best(swept):
        losses = {
            f"{r.rate:g}": r.loss if math.isfinite(r.loss) else None  # null: diverged
            for r in swept
            if r.method == winner.method
        }
        print(json.dumps({"method": winner.method, "best": winner.rate, "loss_at": losses}))


if __name__ == "__main__":
    sys.exit(guarded(main)())
