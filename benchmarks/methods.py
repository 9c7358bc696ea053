"""What teleportation costs in training: LSTM(update,tele) over LSTM(update), a trajectory.

python benchmarks/methods.py [--layers 2] [--batch 8] [--threads 1]
"""

from __future__ import annotations

import argparse
import json

import torch
from interleaved import interleaved
from trajectory import train, training_problem

from metaopt.learned.meta_optimizer import MetaOptimizer, MetaOptimizerSpec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    problem = training_problem(options.batch)
    update_tele, update = (
        MetaOptimizer(MetaOptimizerSpec(element=element, layers=options.layers), seed=0)
        for element in ("coordinatewise", "none")
    )
    result = interleaved(
        lambda: train(problem, update_tele, options.steps),
        lambda: train(problem, update, options.steps),
        options.repeats,
    )
    seconds = {
        "seconds_per_trajectory_update_tele": result["first_seconds"] / options.batch,
        "seconds_per_trajectory_update": result["second_seconds"] / options.batch,
    }
    name = "LSTM(update,tele) / LSTM(update) training"
    print(json.dumps({"benchmark": name, **vars(options), **result, **seconds}))


if __name__ == "__main__":
    main()
