"""A balance of all sites of a transformer against a training step of AdamW.

The network has 10.7 million weights by default: six blocks of 384 features with six heads, of ReLU
units. The step is one of AdamW on batches of 16 pieces of 128 tokens. "search" is the closed form
and the moves of the weights; "balance" takes the gradients and both averages along besides, as
``TeleportingOptimizer(search="balance", schedule=1)`` does at each step.

python benchmarks/balance_cost.py [--width 384] [--blocks 6] [--batch 16] [--length 128]
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from statistics import median

import torch
from command import parse
from torch import Tensor, nn
from torch.nn import functional

from metaopt import TeleportingOptimizer
from metaopt.symmetry import Balance

VOCABULARY = 65


class Network(nn.Module):
    def __init__(self, width: int, blocks: int, length: int) -> None:
        super().__init__()
        heads = max(width // 64, 1)
        block = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "relu", batch_first=True, norm_first=True
        )
        self.tokens, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(length, width)
        self.blocks = nn.TransformerEncoder(block, blocks, enable_nested_tensor=False)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.tokens(x) + self.places.weight[: x.shape[1]]))


def seconds(run: Callable[[], object], repeats: int) -> float:
    """The median processor time of a call, after one that is not counted."""
    taken = []
    for _ in range(repeats + 1):
        start = time.process_time()
        run()
        taken.append(time.process_time() - start)
    return median(taken[1:])


def main() -> None:
    values = parse(__doc__, width=384, blocks=6, batch=16, length=128, repeats=5, threads=1)
    torch.manual_seed(0)
    model = Network(values.width, values.blocks, values.length)
    x, y = torch.randint(0, VOCABULARY, (2, values.batch, values.length))
    base = torch.optim.AdamW(model.parameters(), 1e-4)
    optimizer = TeleportingOptimizer(base, model, search="balance", schedule=1)

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
        base.step()

    alone = seconds(step, values.repeats)
    orbit = optimizer.orbit(x)
    start = [parameter.detach().clone() for parameter in optimizer.moving]
    search = seconds(lambda: Balance()(orbit, start), values.repeats)
    balance = seconds(optimizer.teleport, values.repeats)
    result = {
        "benchmark": "a balance over a training step",
        **vars(values),
        "weights": sum(parameter.numel() for parameter in model.parameters()),
        "sites": len(orbit.acting),
        "seconds of a step": round(alone, 3),
        "search, over a step": round(search / alone, 3),
        "balance, over a step": round(balance / alone, 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
