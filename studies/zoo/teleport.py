"""What m2 adds beside m1, by optimizers trained anew on each kind of network of the zoo.

    python -m studies.zoo.teleport --out runs/zoo_teleport [--trajectories N] [--cells N] [--quick]

For each cell where the group is exact on all data, LSTM(update,tele) and the same without m2 are
trained on networks of that cell, each from the same meta-seed and for as long, and measured on the
cell's test networks. Elsewhere m2 does not act. Trainings go on where they were killed.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from metaopt.cli.common import guarded, set_threads
from metaopt.cli.recipes import Recipe, load_recipe
from metaopt.errors import UserError
from metaopt.evaluation.rollout import rollout
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.tasks import first_seeds
from metaopt.training.distributions import TASK_DISTRIBUTIONS
from metaopt.training.run import BEST
from studies.builders import learned_of
from studies.command import add_jobs, study_parser
from studies.learned_teleportation.training_pool import train_all
from studies.report import markdown, write_text
from studies.zoo.cells import CELLS, NETWORKS, Cell, shuffled
from studies.zoo.runs import run
from studies.zoo.training import CellTraining

WITH, WITHOUT = "lstm_update_tele", "lstm_whitened"
AT = (3, 5, 10, 30, 100)
SAME = 1.1  # a factor of losses below which two optimizers count as equal
ROUNDING = 1e-13  # of the start: losses in float32 below it are rounding


def acts(cell: Cell) -> bool:
    """Return whether m2 acts on the networks of a cell.

    Args:
        cell: the cell.
    """
    tasks = cell.family().sample(first_seeds("test", 1))
    optimizer = LearnedOptimizer(tasks, WITH)
    rollout(tasks, optimizer, 1, measure_invariance=False)
    return optimizer.teleportation is not None


def recipe(name: str, cell: Cell, trajectories: int) -> Recipe:
    """Return the recipe of a shipped optimizer, trained on one cell.

    Args:
        name: of the recipe.
        cell: the cell.
        trajectories: the budget.
    """
    own = load_recipe(name)
    changes: dict[str, Any] = {
        "problems": "zoo_cell",
        "cell": cell.name,
        "trajectories": trajectories,
        "validation_every": max(1, trajectories // 4),
    }
    return replace(own, training=replace(own.training, **changes))


def losses(cell: Cell, checkpoint: Path, count: int) -> list[float]:
    """Return the losses over their start at some steps, geometric means over networks.

    Args:
        cell: the cell.
        checkpoint: of the optimizer.
        count: how many test networks.
    """
    seeds = first_seeds("test", count)
    found, _ = run(cell.family(), partial(learned_of, str(checkpoint)), seeds, AT[-1])
    means = (found / found[0]).clamp(min=ROUNDING).log().mean(dim=1).exp()
    return [float(means[step]) for step in AT]


def table(measured: Mapping[Cell, Mapping[str, Sequence[float]]]) -> str:
    """Return the table: one row a cell, and one with the means over cells.

    Args:
        measured: for each cell the losses with m2 and without.
    """
    steps = [f"step {step}" for step in AT]
    rows = []
    ratios = []
    for cell, own in measured.items():
        ratio = [a / b for a, b in zip(own[WITH], own[WITHOUT], strict=True)]
        ratios.append(ratio)
        pairs = zip(own[WITH], own[WITHOUT], strict=True)
        rows.append([cell.name, *(f"{a:.2g} / {b:.2g}" for a, b in pairs)])
    columns = list(zip(*ratios, strict=True))
    means = [math.exp(sum(map(math.log, own)) / len(own)) for own in columns]
    rows.append(["with m2 over without, geometric mean", *(f"{own:.2f}" for own in means)])
    counts = [
        f"{sum(own < 1 / SAME for own in column)} / {sum(own > SAME for own in column)}"
        for column in columns
    ]
    rows.append([f"lower / higher with m2 by more than {SAME - 1:.0%}", *counts])
    return markdown(["loss over its start, with m2 / without", *steps], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments, train, measure, and write the table."""
    parser = study_parser("zoo.teleport", __doc__)
    add_jobs(parser)
    parser.add_argument("--trajectories", type=int, default=360, help="budget of each training")
    parser.add_argument("--cells", type=int, default=len(CELLS), help="the most, in a random order")
    values = parser.parse_args(arguments)
    set_threads(values.threads)
    if values.cells < 1 or values.trajectories < 1:
        raise UserError("expected cells and trajectories of 1 or more: leave them out")
    out, count = Path(values.out), 2 if values.quick else NETWORKS
    cells = list(islice(filter(acts, shuffled()), 1 if values.quick else values.cells))
    budget = 6 if values.quick else values.trajectories
    folders = {
        (cell, name): out / "trained" / f"{cell.name}-{name}"
        for cell in cells
        for name in (WITH, WITHOUT)
    }
    train_all(
        [(recipe(name, cell, budget), folder) for (cell, name), folder in folders.items()],
        values.jobs,
    )
    measured = {
        cell: {name: losses(cell, folders[cell, name] / BEST, count) for name in (WITH, WITHOUT)}
        for cell in cells
    }
    text = table(measured)
    write_text(out / "tables" / "zoo_teleport.md", text)
    print(text)


if __name__ in ("__main__", "__mp_main__"):  # here, and in the processes that train
    TASK_DISTRIBUTIONS["zoo_cell"] = CellTraining

if __name__ == "__main__":
    sys.exit(guarded(main)())
