"""What teleportation costs in training: LSTM(update,tele) over the same without m2, a trajectory.

python benchmarks/methods.py [--layers 2] [--batch 8] [--threads 1]
"""

from __future__ import annotations

import json
from dataclasses import replace

from command import parse
from interleaved import interleaved
from trajectory import UPDATE_TELE, train, training_problem

from metaopt.learned.meta_optimizer import MetaOptimizer


def main() -> None:
    options = parse(__doc__, layers=1, batch=8, steps=100, repeats=7, threads=1)
    problem = training_problem(UPDATE_TELE, options.batch)
    update_tele, update = (
        MetaOptimizer(replace(UPDATE_TELE.networks, element=element, layers=options.layers), seed=0)
        for element in ("spectral", "none")
    )
    result = interleaved(
        lambda: train(UPDATE_TELE, problem, update_tele, options.steps),
        lambda: train(UPDATE_TELE, problem, update, options.steps),
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
