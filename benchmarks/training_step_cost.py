"""What a whole training step costs with a learned optimizer, over one with AdamW.

A step is forward, backward and ``step()``. AdamW is ``torch.optim.AdamW`` as it comes, which on a
CPU is its form without fused kernels. Steps of all optimizers are made in turn in one process;
seconds are the processor's. Of the times of each, the median and the mean are given, and the ratio
of both, as a rule may have work that not each step has. "alone" is the same of ``step()`` alone.

State is what the optimizer keeps, in bytes a weight. Extra memory is how far the resident memory
rises above its start over three steps of about 11 million weights (ResNet-18) with gradients there
already, in a process of its own; it holds the state, and is given in bytes and over the weights.

python benchmarks/training_step_cost.py [--methods NAME,NAME] [--networks NAME,NAME] [--steps 50]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from command import integers
from memory import peak_rss, printed_by
from torch import Tensor, nn
from torch.nn import functional

from metaopt import LearnedOptimizer

sys.path.insert(0, str(Path(__file__).parents[1]))  # studies/ is not installed

from studies.untuned.resnet import ResNet18
from studies.untuned.vit import ViT

WARM_UP = 3  # steps that are not counted
ADAMW = "adamw"


def perceptron(*widths: int, relu: bool = True) -> nn.Sequential:
    """Linear layers, with ReLU between them or with nothing."""
    layers: list[nn.Module] = []
    for into, out in pairwise(widths):
        layers += [nn.Linear(into, out), *([nn.ReLU()] if relu else [])]
    return nn.Sequential(*layers[: len(layers) - relu])


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": (lambda: ResNet18(small_images=True), (32, 3, 32, 32)),
    "vit_tiny": (ViT, (32, 3, 32, 32)),
    "twelve_linear": (lambda: perceptron(*[512] * 13, relu=False), (64, 512)),
    "perceptron": (lambda: perceptron(784, 256, 256, 10), (64, 784)),
}
"""A network and the shape of its input, by name."""


def optimizer_of(name: str, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW, or a learned optimizer; at a small rate, so that a long run does not diverge."""
    if name == ADAMW:
        return torch.optim.AdamW(model.parameters(), 1e-5)
    return LearnedOptimizer(model, name, lr=1e-3)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors of the state, each storage counted once."""
    tensors = [
        value
        for entries in optimizer.state.values()
        for value in entries.values()
        if isinstance(value, Tensor)
    ]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


class Contender:
    """A network of its own, and the optimizer that steps it."""

    def __init__(self, method: str, network: str) -> None:
        torch.manual_seed(0)
        build, self.shape = NETWORKS[network]
        self.model = build()
        self.optimizer = optimizer_of(method, self.model)
        self.whole: list[float] = []
        self.alone: list[float] = []

    def step(self) -> None:
        """One training step on random data, timed."""
        x = torch.randn(self.shape)
        start = time.process_time()
        self.optimizer.zero_grad()
        output = self.model(x)
        functional.cross_entropy(output, x.new_zeros(len(x), dtype=torch.long)).backward()
        middle = time.process_time()
        self.optimizer.step()
        end = time.process_time()
        self.whole.append(end - start)
        self.alone.append(end - middle)


def cost(methods: list[str], network: str, steps: int) -> dict[str, dict[str, float]]:
    """The numbers of each method on a network."""
    contenders = {name: Contender(name, network) for name in methods}
    for _ in range(WARM_UP + steps):
        for contender in contenders.values():
            contender.step()
    base, found = contenders[ADAMW], {}
    weights = sum(p.numel() for p in base.model.parameters())
    for name, own in contenders.items():
        numbers = {"state_bytes_a_weight": state_bytes(own.optimizer) / weights}
        for what in ("whole", "alone"):
            mine, adamw = (getattr(each, what)[WARM_UP:] for each in (own, base))
            for kind in (statistics.median, statistics.mean):
                label = f"{what}_{kind.__name__}"
                numbers[f"{label}_milliseconds"] = 1000 * kind(mine)
                numbers[f"{label}_over_adamw"] = kind(mine) / kind(adamw)
        found[name] = numbers
    return found


def extra_memory(method: str, width: int) -> dict[str, float]:
    """How far three steps raise the resident memory of this process."""
    model = ResNet18(width, small_images=True)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer = optimizer_of(method, model)
    weights = sum(4 * p.numel() for p in model.parameters())
    before = peak_rss()
    for _ in range(3):
        optimizer.step()
    extra = peak_rss() - before
    return {"extra_bytes": extra, "extra_over_weights": extra / weights}


def in_a_process(method: str, width: int, threads: int) -> dict[str, float]:
    """The memory of a method, measured in a fresh process."""
    arguments = (f"--alone={method}", f"--width={width}", f"--threads={threads}")
    numbers: dict[str, float] = printed_by(__file__, *arguments)
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", default="lstm_layerwise", help="names or checkpoints")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="some of them")
    integers(parser, steps=50, width=64, threads=1)
    parser.add_argument("--alone", default="", help="measure the memory of this method here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.alone:
        print(json.dumps(extra_memory(options.alone, options.width)))
        return
    methods = [ADAMW, *options.methods.split(",")]
    memory = {name: in_a_process(name, options.width, options.threads) for name in methods}
    # The peak of a process is no lower than that of its parent, so these come afterwards.
    result: dict[str, object] = {
        network: cost(methods, network, options.steps) for network in options.networks.split(",")
    }
    result["memory"] = memory
    arguments = {key: value for key, value in vars(options).items() if key != "alone"}
    name = "a training step / AdamW's training step"
    print(json.dumps({"benchmark": name, **arguments, **result}))


if __name__ == "__main__":
    main()
