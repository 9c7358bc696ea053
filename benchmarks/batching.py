"""Evaluating a shipped optimizer on 64 problems together against one by one.

python benchmarks/batching.py [--problems 64] [--steps 30] [--threads 1]
"""

from __future__ import annotations

import argparse
import json

import torch
from command import integers
from interleaved import interleaved

from metaopt.evaluation.rollout import rollout
from metaopt.learned.checkpoint import load_meta_optimizer
from metaopt.learned.meta_optimizer import MetaOptimizer
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.tasks import RegressionFamily


def evaluate(meta: MetaOptimizer, seeds: range, steps: int) -> None:
    problem = RegressionFamily().sample(seeds)
    rollout(problem, LearnedOptimizer(problem, meta), steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optimizer", default="lstm_update_tele_v1")
    integers(parser, problems=64, steps=30, repeats=7, threads=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    meta = load_meta_optimizer(options.optimizer)
    first = 10**6  # validation problems

    def one_by_one() -> None:
        for seed in range(first, first + options.problems):
            evaluate(meta, range(seed, seed + 1), options.steps)

    result = interleaved(
        lambda: evaluate(meta, range(first, first + options.problems), options.steps),
        one_by_one,
        options.repeats,
    )
    seconds = {
        "seconds_per_problem_together": result["first_seconds"] / options.problems,
        "seconds_per_problem_one_by_one": result["second_seconds"] / options.problems,
    }
    name = "evaluation of problems together / one by one"
    print(json.dumps({"benchmark": name, **vars(options), **result, **seconds}))


if __name__ == "__main__":
    main()
