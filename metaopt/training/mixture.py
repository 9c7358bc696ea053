"""Which training problems are drawn: the mixture of sizes, depths, slopes and distributions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch

from metaopt.tasks import RegressionFamily, TaskBatch, TaskFamily, check_seeds
from metaopt.tasks.seeds import TRAINING

if TYPE_CHECKING:
    from metaopt.training.spec import TrainingSpec

Choice = TypeVar("Choice")


class Drawn(NamedTuple):
    """A batch that is still to be sampled, whole or in shards."""

    family: TaskFamily
    seeds: list[int]

    def sample(self) -> TaskBatch:
        """The whole batch."""
        return self.family.sample(self.seeds)


def draw_problems(spec: TrainingSpec, generator: torch.Generator) -> Drawn:
    """The next batch: one family, as many problems of it as keep the number of weights."""
    family = draw_family(spec, generator)
    budget = spec.batch_size * spec.reference.coordinates
    count = max(1, round(budget / family.coordinates))
    seeds = [integer(generator, TRAINING.start, 2**53) for _ in range(count)]
    return Drawn(family, check_seeds(seeds, "training"))


def draw_family(spec: TrainingSpec, generator: torch.Generator) -> RegressionFamily:
    """Square problems, or, if ``rectangular``, sizes drawn one by one.

    There are at most as many samples as inputs and as hidden units: with more than inputs eq. 78
    is not exact, with more than hidden units eq. 79 is not, and the loss cannot reach zero.
    """
    width = one_of(spec.widths, generator)
    samples = inputs = hidden = output = width
    if spec.rectangular:
        inputs, hidden, output = (one_of(spec.widths, generator) for _ in range(3))
        samples = min(width, inputs, hidden)
    return RegressionFamily(
        samples,
        inputs,
        hidden,
        output,
        depth=one_of(spec.depths, generator),
        slope=one_of(spec.slopes, generator),
        distribution=one_of(spec.distributions, generator),
        loss=spec.loss,
        dtype=spec.dtype,
    )


def one_of(choices: Sequence[Choice], generator: torch.Generator) -> Choice:
    """One of them, each with the same chance."""
    if len(choices) == 1:
        return choices[0]
    return choices[integer(generator, 0, len(choices))]


def integer(generator: torch.Generator, low: int, high: int) -> int:
    """Uniform on [low, high)."""
    return int(torch.randint(low, high, (), generator=generator))
