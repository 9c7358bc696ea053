"""One point of ``scaling.py``: seconds a trajectory and peak memory, measured in this process.

Under torchrun one of the processes that share the batches. The networks are untrained and stay as
they are, so that all steps are run: the trainer ends a batch where nothing is left to learn.

python benchmarks/scaling_point.py '{"task": "update_tele", "width": 8}'
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import torch
from memory import peak_rss
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from metaopt.cli.recipes import load_recipe
from metaopt.evaluation.rollout import rollout
from metaopt.launch import joined
from metaopt.learned.checkpoint import load_meta_optimizer
from metaopt.learned.meta_optimizer import MetaOptimizer
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.ranks import ALONE, CPU, Ranks
from metaopt.tasks import RegressionFamily, TaskSampler
from metaopt.training.distributions import TASK_DISTRIBUTIONS, Drawn, TaskDistribution
from metaopt.training.trainer import Trainer

TRAINED, VALIDATION = 10**7, 10**6  # the first seeds of training and of validation
STILL = 1e-12  # a learning rate that changes nothing
recipe_of = cache(load_recipe)


class Point(NamedTuple):
    """What is measured; the defaults are the reference."""

    task: str = "update_tele"  # or "update", both trained; or "evaluation"
    width: int = 20
    batch: int = 8
    steps: int = 100
    hidden: int = 20
    window: int = 6
    micro: int = 0
    processes: int = 1


@TASK_DISTRIBUTIONS.register("exactly")
@dataclass(frozen=True)
class Exactly(TaskDistribution):
    """``batch_size`` square problems of the one width, always the same."""

    widths: tuple[int, ...] = (8, 12, 16, 20, 28, 40)
    dtype: str = "float64"

    def draw(self, batch_size: int, generator: torch.Generator) -> Drawn:
        family = RegressionFamily.square(self.widths[0], dtype=self.dtype)
        return Drawn(family, list(range(TRAINED, TRAINED + batch_size)))

    def validation(self, count: int) -> list[tuple[TaskSampler, int]]:
        return []


def training(point: Point, ranks: Ranks = ALONE) -> Callable[[], None]:
    """A batch of the recipe, with a meta-step after each window."""
    recipe = recipe_of(f"lstm_{point.task}")
    spec = replace(
        recipe.training,
        problems="exactly",
        batch_size=point.batch,
        micro_batch=point.micro,
        steps=point.steps,
        window=point.window,
        widths=(point.width,),
        schedule="constant",
        learning_rate_update=STILL,
        learning_rate_element=STILL,
    )
    trainer = Trainer(replace(recipe.networks, hidden=point.hidden), spec, ranks)

    def run() -> None:
        before = trainer.meta_steps
        trainer.train_batch()
        if trainer.meta_steps - before != -(-point.steps // point.window):
            raise RuntimeError(f"expected all windows of {point} to be run, got fewer")

    return run


def evaluation(point: Point) -> Callable[[], None]:
    """A rollout of the shipped optimizer, or of an untrained one of another hidden size."""
    meta = load_meta_optimizer("lstm_update_tele_v1")
    if meta.spec.hidden != point.hidden:
        meta = MetaOptimizer(replace(meta.spec, hidden=point.hidden))
    family = RegressionFamily.square(point.width)

    def run() -> None:
        problem = family.sample(range(VALIDATION, VALIDATION + point.batch))
        rollout(problem, LearnedOptimizer(problem, meta), point.steps)

    return run


def prepared(point: Point, ranks: Ranks = ALONE) -> Callable[[], None]:
    return evaluation(point) if point.task == "evaluation" else training(point, ranks)


def measure(point: Point, repeats: int, budget: float, ranks: Ranks = ALONE) -> dict[str, float]:
    """The quickest of as many runs as ``repeats`` and ``budget`` seconds allow, at least one.

    Of the seconds those of the processor, which other programs disturb little; "wall" is the clock
    on the wall, the one that counts where processes wait for each other.
    """
    small = point._replace(width=4, batch=1, steps=2, window=2, micro=0)
    prepared(small)()  # what torch loads at its first use
    run, before = prepared(point, ranks), peak_rss()
    busy: list[float] = []
    wall: list[float] = []
    while ranks.most(int(not busy or (len(busy) < repeats and sum(busy) < budget))):
        start = time.process_time(), time.perf_counter()
        run()
        busy.append(time.process_time() - start[0])
        wall.append(time.perf_counter() - start[1])
    return {
        "seconds": min(busy) / point.batch,
        "seconds_median": statistics.median(busy) / point.batch,
        "wall": min(wall) / point.batch,
        "wall_median": statistics.median(wall) / point.batch,
        "repeats": len(busy),
        "rss": peak_rss(),
        "growth": peak_rss() - before,
    }


class Count(TorchDispatchMode):
    """Counts the operations that torch dispatches, those that only make views apart."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = self.views = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.is_view:
            self.views += 1
        else:
            self.kernels += 1
        return func(*args, **(kwargs or {}))


def operations(point: Point) -> dict[str, float]:
    """Of a step, its share of the backward pass and of the meta-step included."""
    counts = []
    for windows in (1, 2):
        run = prepared(point._replace(steps=windows * point.window))
        with Count() as count:
            run()
        counts.append(count)
    return {
        name: (getattr(counts[1], name) - getattr(counts[0], name)) / point.window
        for name in ("kernels", "views")
    }


def seconds_of(act: Callable[[], object], repeats: int) -> float:
    """Of the processor: the quickest of seven means over ``repeats`` calls."""
    means = []
    for _ in range(7):
        start = time.process_time()
        for _ in range(repeats):
            act()
        means.append((time.process_time() - start) / repeats)
    return min(means)


def parts(widths: list[int], hidden: list[int], columns: int) -> dict[str, Any]:
    """What a step is made of, alone: eigenvectors, the product of a gate, an operation."""

    def eigenvectors(width: int, batch: int) -> float:
        h = torch.rand(batch, width, width, dtype=torch.float64, generator=torch.Generator())
        c: Tensor = h @ h.mT / width
        return seconds_of(lambda: torch.linalg.eigh(c), 1 if width > 100 else 10) / batch

    def product(size: int) -> float:
        weight, h = torch.ones(4 * size, size), torch.ones(size, columns)
        return 8 * size * size * columns / seconds_of(lambda: torch.mm(weight, h), 10)

    gates, tiny = torch.zeros(80, columns), torch.zeros(8)
    return {
        "eigh_seconds_a_matrix": {str(w): eigenvectors(w, 1 if w > 300 else 8) for w in widths},
        "product_flop_a_second": {str(size): product(size) for size in hidden},
        "sigmoid_seconds_an_entry": seconds_of(gates.sigmoid_, 10) / gates.numel(),
        "operation_seconds": seconds_of(lambda: torch.add(tiny, tiny), 10_000),
    }


def main() -> None:
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(asked.pop("threads", 1))
    repeats, budget = asked.pop("repeats", 3), asked.pop("budget", 5.0)
    with joined(CPU) as ranks:
        numbers = measure(Point(**asked), repeats, budget, ranks)
        if ranks.first:
            print(json.dumps(numbers), flush=True)


if __name__ == "__main__":
    main()
