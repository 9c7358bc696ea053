"""step() of an optimizer that never teleports against that of the base it wraps.

On the MNIST network of section 5.1 with gradients that stay, in turns.

python benchmarks/teleporting_step.py [--steps 500] [--repeats 15]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from command import parse
from interleaved import interleaved
from torch.nn import functional

from metaopt import TeleportingOptimizer

sys.path.insert(0, str(Path(__file__).parents[1]))  # studies/ is not installed

from studies.optimizers.image_runs import BASES, network


def stepping(base: str, wrapped: bool, steps: int) -> Callable[[], None]:
    """A number of steps on a network of its own."""
    model = network(0, 784)
    optimizer: torch.optim.Optimizer = BASES[base](list(model.parameters()), lr=1e-6)
    functional.cross_entropy(model(torch.rand(20, 784)), torch.arange(20) % 10).backward()
    if wrapped:
        optimizer = TeleportingOptimizer(optimizer, model, functional.cross_entropy)

    def run() -> None:
        for _ in range(steps):
            optimizer.step()

    return run


def main() -> None:
    options = parse(__doc__, steps=500, repeats=15, threads=1)
    results = {
        base: interleaved(
            stepping(base, True, options.steps),
            stepping(base, False, options.steps),
            options.repeats,
        )
        for base in BASES
    }
    name = "step() without a teleport, teleporting / base"
    print(json.dumps({"benchmark": name, **vars(options), **results}))


if __name__ == "__main__":
    main()
