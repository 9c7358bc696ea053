"""Tasks of any module: what stacking gains, and what windows and particles cost beside the passes.

- ``stacked``: a forward and backward pass of the copies together over those one by one.
- ``window``: a window of truncated backpropagation over a loop written by hand on the same copies
  with ``torch.vmap``, the same update rule and no library around it.
- ``particles``: a window of PES over the same passes and steps with one set of meta-parameters.
- ``recompute``: seconds, and the bytes that a window's graph holds, with --recompute over without.
- ``memory``: resident memory at the end of --windows windows over that after a tenth of them.

python benchmarks/own_tasks.py [--copies 16] [--steps 10] [--windows 1000] [--threads 1]
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from typing import Any

import psutil
import torch
from command import parse
from interleaved import interleaved
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from metaopt.evaluation.rollout import rollout
from metaopt.learned.meta_optimizer import MetaOptimizer, MetaOptimizerSpec, StepInput
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.symmetry import LayerInput
from metaopt.tasks import SingleTask, StackedTasks, Task, stacked
from metaopt.training.meta_loss import PaperSum
from metaopt.training.particles import particles
from metaopt.training.unroll import unroll


class Perceptron(Task):
    """Three Linear layers on 8x8 images of noise."""

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)
        )

    def batches(self, seed: int, split: str) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(seed)
        x = self.data(generator)
        batch = x, torch.randint(0, 10, x.shape[:1], generator=generator)
        while True:
            yield batch

    def data(self, generator: torch.Generator) -> Tensor:
        return torch.randn(32, 64, generator=generator)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])


class Convolutions(Perceptron):
    """Two convolutions with batch norm."""

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, padding=1, stride=2),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 10),
        )


class Block(nn.Module):
    """A transformer block with a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(32), nn.LayerNorm(32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of each sequence."""
        heads = self.qkv(self.first(x)).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        x = x + self.out(attended)
        x = x + self.down(F.gelu(self.up(self.second(x))))
        return self.head(x.mean(dim=1))


class Attention(Perceptron):
    """One transformer block."""

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return Block()

    def data(self, generator: torch.Generator) -> Tensor:
        return torch.randn(8, 16, 32, generator=generator)


TASKS = {"perceptron": Perceptron, "convolutions": Convolutions, "attention": Attention}


def differentiated(batches: list[Any]) -> None:
    for tasks in batches:
        tasks.zero_grad()
        tasks(0).sum().backward()


def by_hand(tasks: StackedTasks, task: Task, meta: MetaOptimizer, steps: int) -> list[Tensor]:
    """The meta-gradient of a window, without ``higher`` and without the library's drivers."""
    network = task.model(0)
    names = [name for name, _ in network.named_parameters()]
    weights = [p.detach().clone().requires_grad_() for p in tasks.parameters()]
    streams = [next(iter(task.batches(seed, "train"))) for seed in tasks.seeds]
    x, y = (torch.stack(own) for own in zip(*streams, strict=True))
    state = meta.init_state(tasks.chain, weights)
    layer_input, after = LayerInput(tasks.x), []

    def one(values: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        tensors = dict(zip(names, values, strict=True))
        with sdpa_kernel(SDPBackend.MATH):  # the only one that can be differentiated twice
            return F.cross_entropy(functional_call(network, tensors, (x,)), y)

    for module in network.modules():  # batch norm without its statistics, which no loss needs
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
            module.num_batches_tracked = None
    losses = torch.vmap(one)(weights, x, y)
    for _ in range(steps):
        gradients = torch.autograd.grad(losses.sum(), weights, retain_graph=True, create_graph=True)
        now = StepInput(weights, gradients, second_order=True)
        weights, state, _ = meta.advance(tasks.chain, layer_input, now, state)
        losses = torch.vmap(one)(weights, x, y)
        after.append(losses)
    value = PaperSum()(torch.stack(after))
    return list(torch.autograd.grad(value, list(meta.parameters())))


def windows(
    tasks: StackedTasks, meta: MetaOptimizer, count: int, steps: int, recompute: int
) -> Any:
    optimizer = LearnedOptimizer(tasks, meta)
    return unroll(tasks, optimizer, count * steps, steps, PaperSum(), True, recompute)


def held_bytes(tasks: StackedTasks, meta: MetaOptimizer, steps: int, recompute: int) -> int:
    """The most bytes of tensors that the graph of a window saves at one time."""
    alive, most = {"now": 0}, [0]

    class Saved:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor, self.bytes = tensor, tensor.untyped_storage().nbytes()
            alive["now"] += self.bytes
            most[0] = max(most[0], alive["now"])

        def __del__(self) -> None:
            alive["now"] -= self.bytes

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        next(windows(tasks, meta, 1, steps, recompute))
    return most[0]


def main() -> None:
    options = parse(__doc__, copies=16, steps=10, repeats=7, windows=1000, threads=1)
    warnings.simplefilter("ignore")
    seeds, steps = range(options.copies), options.steps
    meta = MetaOptimizer(MetaOptimizerSpec(update="layerwise", element="none", hidden=16))
    numbers: dict[str, Any] = {}
    for name, kind in TASKS.items():
        task = kind()
        together = stacked(task, seeds)
        singles = [SingleTask(task, seed) for seed in seeds]
        found: dict[str, Any] = {}
        found["stacked"] = interleaved(
            lambda t=together: differentiated([t]),
            lambda s=singles: differentiated(s),
            options.repeats,
        )
        found["window"] = interleaved(
            lambda t=together: next(windows(t, meta, 1, steps, 0)),
            lambda t=together, k=task: by_hand(t, k, meta, steps),
            options.repeats,
        )
        runs = particles(together, LearnedOptimizer(together, meta), 2)
        theta = [p.detach().expand(2 * options.copies, *p.shape) for p in meta.parameters()]
        alike = together.select([*range(options.copies), *range(options.copies)])
        plain = LearnedOptimizer(alike, meta)
        found["particles"] = interleaved(
            lambda r=runs, t=theta: r.advance(t, 0, steps),
            lambda a=alike, p=plain: rollout(a, p, steps, measure_invariance=False),
            options.repeats,
        )
        segment = max(1, round(steps**0.5))
        found["recompute"] = interleaved(
            lambda t=together, s=segment: next(windows(t, meta, 1, steps, s)),
            lambda t=together: next(windows(t, meta, 1, steps, 0)),
            options.repeats,
        )
        held = [held_bytes(together, meta, steps, recompute) for recompute in (segment, 0)]
        found["recompute"]["bytes_ratio"] = held[0] / held[1]
        numbers[name] = found
    resident, process = [], psutil.Process()
    tasks = stacked(Perceptron(), seeds)
    for done, _ in enumerate(windows(tasks, meta, options.windows, 2, 0), start=1):
        if done in (max(1, options.windows // 10), options.windows):
            resident.append(process.memory_info().rss)
    growth = resident[-1] / resident[0]
    print(
        json.dumps(
            {"benchmark": "tasks of any module", **vars(options), **numbers, "memory": growth}
        )
    )


if __name__ == "__main__":
    main()
