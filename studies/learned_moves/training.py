"""Antithetic evolution strategies for m2, several meta-seeds side by side.

A generation is one training of a stack: for each meta-seed some tasks of its own, and each with
pairs of networks theta + sigma e and theta - sigma e on the same batches. What is lowered is the
mean of the logarithms of the losses half way and at the end. The differences of pairs are divided
by their root mean square, as tasks differ in how much there is to gain. All that is drawn depends
on the meta-seed and the number of the generation, so a training goes on where it was killed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from metaopt.storage import write_atomically
from studies.learned_moves.families import FIRST
from studies.learned_moves.move import Network
from studies.learned_moves.runs import Setting, trained
from studies.learned_moves.tasks import Family, Stack

KEPT_EVERY = 5
MOMENTS = 0.9, 0.99


@dataclass(frozen=True)
class Strategy:
    """How m2 is trained.

    Attributes:
        seeds: meta-seeds.
        generations: of each.
        pairs: of networks a generation.
        sigma: the size of what is added to the weights of m2.
        rate: of Adam on the weights of m2, at the start; it falls to 0.4 of that.
        tasks: of a meta-seed in a generation, by kind.
        snapshots: how often weights are kept to choose from.
    """

    seeds: int = 5
    generations: int = 80
    pairs: int = 6
    sigma: float = 0.1
    rate: float = 0.05
    tasks: tuple[tuple[str, int], ...] = (("adapters", 2), ("attention", 1))
    snapshots: int = 2


def start(seed: int) -> Tensor:
    """Return weights of m2 with which it says t = 0, ``(size,)``.

    Args:
        seed: the meta-seed.
    """
    generator = torch.Generator().manual_seed(seed)
    theta = 0.5 * torch.randn(Network.size(), generator=generator)
    hidden = Network.hidden
    theta[-hidden - 1 :] = 0
    return theta


def taught(
    path: Path, families: Sequence[Family], rates: Mapping[str, float], strategy: Strategy
) -> Tensor:
    """Train m2, and return its weights at each snapshot, ``(snapshots, seeds, size)``.

    Args:
        path: the file that keeps the training.
        families: to draw tasks from, one a generation, in turn.
        rates: of AdamW, by kind of task.
        strategy: how.
    """
    count = strategy.seeds
    if path.exists():
        state = load_file(path)
    else:
        theta = torch.stack([start(seed) for seed in range(count)])
        zeros = torch.zeros_like(theta)
        empty = torch.zeros(0, *theta.shape)
        state = {"theta": theta, "first": zeros, "second": zeros.clone(), "kept": empty}
        state |= {"done": torch.zeros((), dtype=torch.long), "losses": torch.zeros(0, count)}
    for generation in range(int(state["done"]), strategy.generations):
        family = families[generation % len(families)]
        gradient, losses = _gradient(state["theta"], generation, family, rates, strategy)
        _step(state, gradient, generation, strategy)
        state["losses"] = torch.cat((state["losses"], losses[None]))
        done = generation + 1
        if done * strategy.snapshots % strategy.generations < strategy.snapshots:
            state["kept"] = torch.cat((state["kept"], state["theta"][None]))
        state["done"] = torch.tensor(done)
        if done % KEPT_EVERY == 0 or done == strategy.generations:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, save({n: t.contiguous() for n, t in state.items()}))
    return state["kept"]


def _gradient(
    theta: Tensor, generation: int, family: Family, rates: Mapping[str, float], strategy: Strategy
) -> tuple[Tensor, Tensor]:
    """Return the estimate of the gradient, and the mean meta-loss, of each meta-seed."""
    tasks = dict(strategy.tasks)[family.kind]
    seeds, noise = [], []
    for seed in range(strategy.seeds):
        generator = torch.Generator().manual_seed(10**6 * (seed + 1) + generation)
        drawn = torch.randint(0, 2**31, (tasks,), generator=generator)
        seeds += [FIRST["train"] + int(value) for value in drawn]
        noise.append(torch.randn(strategy.pairs, theta.shape[-1], generator=generator))
    e = torch.stack(noise, dim=1)  # (pairs, seeds, size)
    particles = theta + strategy.sigma * torch.cat((e, -e))
    copies = particles.repeat_interleave(tasks, dim=1).flatten(0, 1)
    stack: Stack = family.stack(seeds)
    losses = trained(
        stack, Setting(rates[family.kind]), Network(copies), len(particles), at=(0.5, 1.0)
    )
    own = losses.log().reshape(*losses.shape[:-1], strategy.seeds, tasks).mean(dim=(0, -1))
    plus, minus = own.chunk(2)
    difference = plus - minus
    difference = difference / difference.square().mean(dim=0).sqrt().clamp(min=1e-12)
    return (difference.unsqueeze(-1) * e).mean(dim=0), own.mean(dim=0)


def _step(state: dict[str, Tensor], gradient: Tensor, generation: int, strategy: Strategy) -> None:
    """Make a step of Adam."""
    for name, value, decay in zip(
        ("first", "second"), (gradient, gradient.square()), MOMENTS, strict=True
    ):
        state[name] = decay * state[name] + (1 - decay) * value
    first, second = (
        state[name] / (1 - decay ** (generation + 1))
        for name, decay in zip(("first", "second"), MOMENTS, strict=True)
    )
    rate = strategy.rate * (1 - 0.6 * generation / strategy.generations)
    state["theta"] = state["theta"] - rate * first / (second.sqrt() + 1e-8)
