"""LSTM(update) training against its arithmetic: the matrix products of the LSTM alone.

The products of a whole trajectory are counted and as many FLOP are spent on the matrix product
of one LSTM layer, at the rate torch reaches. What the ratio leaves above 1 is all the rest:
gates, the problems, the observation, autograd, Adam.

python benchmarks/arithmetic.py [--layers 2] [--hidden 20] [--batch 8] [--threads 1]
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from command import parse
from interleaved import interleaved
from trajectory import UPDATE, train, training_problem

from metaopt.learned.meta_optimizer import MetaOptimizer

WINDOW = UPDATE.training.window
INPUTS = 2  # of the first layer: log_sign of the gradient


def flop_of_step(layers: int, hidden: int, heads: int, columns: int, first: bool) -> int:
    """FLOP of a step, forward and backward; the first of a window has a detached state."""
    total = 3 * heads * hidden  # the head: forward, to its weights, to h
    for layer in range(layers):
        inputs = INPUTS if layer == 0 else hidden
        forward = 4 * hidden * (inputs + hidden)
        to_weights = forward
        to_x = 0 if layer == 0 else 4 * hidden * inputs  # what the LSTM sees is detached
        to_h = 0 if first else 4 * hidden * hidden
        total += forward + to_weights + to_x + to_h
    return 2 * columns * total


def flop_of_trajectory(layers: int, hidden: int, heads: int, columns: int, steps: int) -> int:
    return sum(
        flop_of_step(layers, hidden, heads, columns, first=step % WINDOW == 0)
        for step in range(steps)
    )


def matrix_products(hidden: int, flop: int) -> Callable[[], None]:
    """``flop`` FLOP of 80 x 42 @ 42 x 6400, for 20 hidden units, in float32."""
    rows, inner, columns = 4 * hidden, 2 * hidden + 2, 6400
    weight, x, gates = torch.ones(rows, inner), torch.ones(inner, columns), torch.empty(0)
    count = math.ceil(flop / (2 * rows * inner * columns))

    def run() -> None:
        for _ in range(count):
            torch.mm(weight, x, out=gates)

    return run


def main() -> None:
    options = parse(__doc__, layers=2, hidden=20, batch=8, steps=100, repeats=7, threads=1)
    spec = replace(UPDATE.networks, layers=options.layers, hidden=options.hidden)
    meta, problem = MetaOptimizer(spec, seed=0), training_problem(UPDATE, options.batch)
    columns = sum(parameter.numel() for parameter in problem.parameters())
    flop = flop_of_trajectory(
        options.layers, options.hidden, len(spec.heads), columns, options.steps
    )
    result = interleaved(
        lambda: train(UPDATE, problem, meta, options.steps),
        matrix_products(options.hidden, flop),
        options.repeats,
    )
    numbers = {
        "gflop_per_trajectory": flop / options.batch / 1e9,
        "gflop_per_second_of_products": flop / result["second_seconds"] / 1e9,
        "seconds_per_trajectory": result["first_seconds"] / options.batch,
        "seconds_per_trajectory_arithmetic": result["second_seconds"] / options.batch,
    }
    name = "LSTM(update) training / its matrix products"
    print(json.dumps({"benchmark": name, **vars(options), **result, **numbers}))


if __name__ == "__main__":
    main()
