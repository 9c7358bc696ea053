"""Small tasks with GL sites, many copies at a time: adapters and attention.

A stack has copies of one architecture, whose tensors have a leading dimension that counts them. All
sites, moves and AdamW itself treat copies apart, so one training of a stack is one of each copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

import metaopt
from metaopt.symmetry import Orbit
from metaopt.symmetry.auto import for_all_data
from metaopt.symmetry.balancing import balanced
from metaopt.symmetry.finders.lora import LORA
from metaopt.tasks.suite.small import DrawnSequences, SequenceModel
from metaopt.training.distributions import drawn_evenly_in_logarithms
from studies.adapters.network import LowRank

Pair = tuple[Tensor, Tensor]
Draws = Callable[[int, int], Iterator[Pair]]
"""From (the seed of a copy, how many samples a batch) to endless batches."""

BATCH, EVALUATED = 8, 64
STEPS = 100
"""Of a training."""


class Copy(NamedTuple):
    """One task with its model.

    Attributes:
        model: with its weights at the start; those that need no gradient are the task's own.
        batches: draws pairs (x, y), of as many samples as it is told.
        held_out: draws pairs to measure on.
    """

    model: nn.Module
    batches: Draws
    held_out: Draws


@dataclass(frozen=True)
class Family:
    """Tasks of one architecture.

    Attributes:
        kind: "adapters", "attention" or "characters".
        name: for people.
        draw: returns the task of a seed.
        loss: of what a model gives and y; a scalar.
    """

    kind: str
    name: str
    draw: Callable[[int], Copy]
    loss: Callable[[Tensor, Tensor], Tensor]

    @cached_property
    def orbit(self) -> Orbit:
        """The low-rank pairs, or the values and outputs, queries and keys, of all copies."""
        copy = self.draw(0)
        x, _ = next(copy.batches(0, 2))
        sites = metaopt.symmetries(copy.model, x)
        sites = sites.of_kind(LORA) if LORA in sites.kinds else balanced(sites)
        names = [n for n, p in copy.model.named_parameters() if p.requires_grad]
        acting = [for_all_data(site) for site in sites]
        return Orbit(names, [a for a in acting if a is not None])

    def stack(self, seeds: Sequence[int]) -> Stack:
        """Return the tasks of some seeds, side by side.

        Args:
            seeds: one a task.
        """
        return Stack(self, [self.draw(seed) for seed in seeds], seeds)


@dataclass(frozen=True)
class Stack:
    """Tasks of one family, side by side.

    Attributes:
        family: of the tasks.
        copies: the tasks.
        seeds: one a task, which draws its batches too.
    """

    family: Family
    copies: Sequence[Copy]
    seeds: Sequence[int]

    def tensors(self, trained: bool) -> dict[str, Tensor]:
        """Return the weights at the start, ``(copies, ...)``, by name.

        Args:
            trained: whether those that are trained, or the others.
        """
        every = [dict(copy.model.named_parameters()) for copy in self.copies]
        names = [name for name, p in every[0].items() if p.requires_grad is trained]
        return {name: torch.stack([own[name].detach() for own in every]) for name in names}

    def batches(self, times: int) -> Iterator[Pair]:
        """Yield batches of all copies.

        Args:
            times: how often all copies are there, with the same batches.
        """
        return _side_by_side(
            [c.batches(seed, BATCH) for c, seed in zip(self.copies, self.seeds, strict=True)], times
        )

    def held_out(self, times: int) -> Pair:
        """Return samples of all copies to measure on.

        Args:
            times: how often all copies are there, with the same samples.
        """
        drawn = [
            c.held_out(seed + 1, EVALUATED) for c, seed in zip(self.copies, self.seeds, strict=True)
        ]
        return next(_side_by_side(drawn, times))

    def losses(self, weights: dict[str, Tensor], fixed: dict[str, Tensor], batch: Pair) -> Tensor:
        """Return the loss of each copy, ``(copies,)``.

        Args:
            weights: those that are trained.
            fixed: the others.
            batch: of all copies.
        """

        model, loss = self.copies[0].model, self.family.loss

        def one(weights: dict[str, Tensor], fixed: dict[str, Tensor], x: Tensor, y: Tensor):  # type: ignore[no-untyped-def]
            return loss(functional_call(model, {**weights, **fixed}, (x,)), y)

        with sdpa_kernel(SDPBackend.MATH):  # vmap runs the others a copy at a time
            result: Tensor = vmap(one)(weights, fixed, *batch)
        return result


def _side_by_side(draws: Sequence[Iterator[Pair]], times: int) -> Iterator[Pair]:
    while True:
        x, y = (
            torch.stack(side).expand(times, *[-1] * (side[0].dim() + 1)).flatten(0, 1)
            for side in zip(*(next(draw) for draw in draws), strict=True)
        )
        yield x, y


class Adapted(nn.Sequential):
    """A network of tanh layers that are frozen, each beside a low-rank pair.

    Args:
        widths: of the input, of the layers, and of the output.
        rank: of the pairs.
        scale: how many times as large as usual A is drawn.
        generator: draws all.
    """

    def __init__(
        self, widths: Sequence[int], rank: int, scale: float, generator: torch.Generator
    ) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layer = nn.Linear(inputs, outputs)
            layer.weight.data.normal_(0, 1.2 / math.sqrt(inputs), generator=generator)
            layer.bias.data.normal_(0, 0.1, generator=generator)
            layers += [LowRank(layer, rank, scale, generator), nn.Tanh()]
        super().__init__(*layers[:-1])


def adapted(seed: int, widths: Sequence[int], rank: int) -> Copy:
    """Return a tuning to what the network says once its weights have moved by low-rank changes.

    The changes have singular values that fall, and are of a higher rank than most adapters. Inputs
    have variances that fall. The loss is 1 where nothing is learned.

    Args:
        seed: of the task.
        widths: of the network.
        rank: of the adapters.
    """
    generator = torch.Generator().manual_seed(seed)
    model = Adapted(widths, rank, drawn_evenly_in_logarithms(generator, 0.1, 10.0), generator)
    size = drawn_evenly_in_logarithms(generator, 0.2, 1.0)
    spread = torch.arange(1, widths[0] + 1.0) ** -drawn_evenly_in_logarithms(generator, 0.1, 1.0)
    spread = spread / spread.square().mean().sqrt()
    truth = []
    for pair in (m for m in model if isinstance(m, LowRank)):
        weight = pair.layer.weight.detach()
        sizes = torch.arange(1, 7.0) ** -1.0
        left, right = (torch.randn(side, 6, generator=generator) for side in weight.shape)
        change = (left * sizes) @ right.T
        truth.append(weight + size * change * weight.norm() / change.norm())
    names = [f"{place}.layer.weight" for place in range(0, len(model), 2)]
    target = dict(zip(names, truth, strict=True))

    def inputs(count: int, generator: torch.Generator) -> Pair:
        x = torch.randn(count, widths[0], generator=generator) * spread
        with torch.no_grad():
            return x, functional_call(model, target, (x,))

    x, y = inputs(512, generator)
    with torch.no_grad():
        unit = float((y - model(x)).square().mean().sqrt())

    def batches(seed: int, size: int) -> Iterator[Pair]:
        own = torch.Generator().manual_seed(seed)
        while True:
            x, y = inputs(size, own)
            yield x, torch.cat((y, torch.full((size, 1), unit)), dim=1)

    return Copy(model, batches, batches)


def relative_error(output: Tensor, y: Tensor) -> Tensor:
    """Return the mean squared error in units of what it is before the tuning.

    Args:
        output: ``(samples, outputs)``.
        y: what it should be, and in a last column the unit.
    """
    return ((output - y[:, :-1]) / y[:, -1:]).square().mean()


def attention(seed: int, heads: int, of_head: int, length: int) -> Copy:
    """Return a task of attention: which token comes next in sequences that repeat with a lag.

    Args:
        seed: of the task.
        heads: of the attention.
        of_head: features of a head.
        length: of the sequences.
    """
    build = partial(SequenceModel, heads * of_head, heads, 1, length)

    def batches(own: int, size: int) -> Iterator[Pair]:
        return DrawnSequences(build, size, length, seed).batches(own, "train")

    return Copy(DrawnSequences(build, BATCH, length, seed).model(seed), batches, batches)


def cross_entropy(output: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross entropy, in nats a token.

    Args:
        output: ``(samples, places, tokens)``.
        y: tokens ``(samples, places)``.
    """
    return functional.cross_entropy(output.flatten(0, 1), y.flatten())
