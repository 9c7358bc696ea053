"""What a step of every method costs on tasks of section 5.2, over Adam's.

Processor time, median over all steps of some trajectories; the methods take trajectories in turn.
"whole" is ``step(closure)``, which evaluates the loss and its gradient; "alone" is ``step()`` after
that was done, for methods that need no closure.

python benchmarks/step_cost.py [--batch 1] [--steps 60] [--repeats 3] [--width 20] [--threads 1]
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import islice

import torch
from command import parse

from metaopt.evaluation.methods import BASELINES, chain_methods, resolve
from metaopt.tasks import RegressionFamily

WARM_UP = 2  # steps that are not counted
ONE_BY_ONE = {"lbfgs", "lbfgs_wolfe", "muon", "shampoo", "soap"}  # each problem by itself
NEED_A_CLOSURE = ONE_BY_ONE | {name for name in BASELINES if name.endswith("_tele")}


def stepping(name: str, alone: bool, width: int, seeds: range) -> Iterator[float]:
    """Yield the milliseconds of each step of a method on a batch of its own."""
    tasks = RegressionFamily.square(width).sample(seeds)
    optimizer = resolve(name).optimizer(tasks)

    def closure() -> torch.Tensor:
        tasks.zero_grad(set_to_none=True)
        loss = tasks().sum()
        loss.backward()
        return loss.detach()

    while True:
        if alone:
            closure()
        step: Callable[[], object] = optimizer.step if alone else lambda: optimizer.step(closure)
        start = time.process_time()
        step()
        yield 1000 * (time.process_time() - start)


def main() -> None:
    options = parse(__doc__, batch=1, steps=60, repeats=3, width=20, threads=1)
    results = {}
    for kind, alone in (("alone", True), ("whole", False)):
        names = [n for n in chain_methods() if not (alone and n in NEED_A_CLOSURE)]
        taken: dict[str, list[float]] = {name: [] for name in names}
        for repeat in range(options.repeats):
            first = 10**6 + repeat * options.batch
            for name in names:
                run = stepping(name, alone, options.width, range(first, first + options.batch))
                list(islice(run, WARM_UP))
                taken[name] += islice(run, options.steps)
        medians = {name: statistics.median(values) for name, values in taken.items()}
        results[f"{kind}_milliseconds"] = medians
        results[f"{kind}_over_adam"] = {n: own / medians["adam"] for n, own in medians.items()}
    print(json.dumps({"benchmark": "step / Adam's step", **vars(options), **results}))


if __name__ == "__main__":
    main()
