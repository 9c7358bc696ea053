"""A teleport of a network against a training step, by transport of gradients and by evaluation.

The search is the default one, whose groups are exact for all data of these networks. "evaluated"
hides from it that its objective is a form of the gradient, so it evaluates each point, as all
searches did before. Times are processor seconds, which depend less on what else runs.

python benchmarks/teleport_cost.py [--samples 16] [--size 64] [--width 64] [--repeats 5]
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from command import parse
from teleport_networks import NETWORKS, data
from torch import Tensor, nn
from torch.nn import functional

from metaopt import TeleportingOptimizer
from metaopt.symmetry import gradient_norm


def evaluated(parameters: list[Tensor], loss: Callable[..., Tensor]) -> Tensor:
    """The default objective, which does not say what it is."""
    return gradient_norm(parameters, loss)


def squared_norm(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The squared gradient norm on a batch, over all parameters."""
    loss = functional.cross_entropy(model(x), y)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return float(sum(g.square().sum() for g in gradients))


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def cost(name: str, samples: int, size: int, width: int, repeats: int) -> dict[str, float]:
    """Steps of training that a teleport costs, and its gain in squared gradient norm."""
    torch.manual_seed(0)
    model, (x, y) = NETWORKS[name](width), data(name, samples, size)
    base = torch.optim.SGD(model.parameters(), 1e-2)
    optimizer = TeleportingOptimizer(base, model, functional.cross_entropy)

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        base.step()

    for _ in range(3):
        step()
    state = copy.deepcopy(model.state_dict())
    before = squared_norm(model, x, y)
    default = optimizer.search
    searches = {"": default, "_evaluated": replace(default, objective=evaluated,
                                                   steps_per_gradient=1)}  # fmt: skip
    steps = min(seconds(step) for _ in range(repeats))
    found = {"parameters": sum(p.numel() for p in model.parameters()), "step_seconds": steps}
    for label, search in searches.items():
        optimizer.search = search
        teleports = []
        for _ in range(repeats if not label else 1):
            model.load_state_dict(state)
            teleports.append(seconds(lambda: optimizer.teleport(x, y)))
        found[f"steps{label}"] = min(teleports) / steps
        found[f"gain{label}"] = squared_norm(model, x, y) / before
    found["gain_kept"] = (found["gain"] - 1) / (found["gain_evaluated"] - 1)
    return found


def main() -> None:
    options = parse(__doc__, samples=16, size=64, width=64, repeats=5, threads=1)
    given = options.samples, options.size, options.width, options.repeats
    results = {name: cost(name, *given) for name in NETWORKS}
    print(
        json.dumps(
            {"benchmark": "training steps that a teleport costs", **vars(options), **results}
        )
    )


if __name__ == "__main__":
    main()
