"""What a learned optimizer is trained on: distributions of tasks, by name.

A distribution draws the next batch to train on, and says what is validated on. It is a frozen
dataclass of its own fields.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import ClassVar, NamedTuple, TypeVar, final

import torch

from metaopt.errors import UserError, check_names
from metaopt.registry import Registry
from metaopt.tasks import (
    FAMILIES,
    MinibatchFamily,
    RegressionFamily,
    TaskBatch,
    TaskFamily,
    check_seeds,
)
from metaopt.tasks.regression import LARGEST
from metaopt.tasks.seeds import TRAINING

Choice = TypeVar("Choice")

REFERENCE_WIDTH = 20


class Drawn(NamedTuple):
    """A batch of tasks that is still to be sampled, whole or in shards."""

    family: TaskFamily
    seeds: list[int]

    def sample(self) -> TaskBatch:
        """The whole batch."""
        return self.family.sample(self.seeds)


class TaskDistribution(ABC):
    """Tasks to train on, and tasks to validate on.

    Attributes:
        chains: whether each task is a chain of layers, on which a group can act.
        smoothing: a validation loss is the mean over this fraction of the steps before it.
    """

    chains: ClassVar[bool] = True
    smoothing: ClassVar[float] = 0.0

    @abstractmethod
    def draw(self, batch_size: int, generator: torch.Generator) -> Drawn:
        """The next batch to train on, of training seeds alone.

        Args:
            batch_size: the budget, in tasks of the size that the distribution counts in.
            generator: of all that is drawn.
        """

    @abstractmethod
    def validation(self, count: int) -> list[tuple[TaskFamily, int]]:
        """What is validated on: each family, with how many of its tasks.

        Args:
            count: tasks of the first family.
        """

    def check_one_size(self, size: tuple[int, int, int]) -> None:
        """Check that all tasks, of training and validation, are two-layer networks of one size.

        Args:
            size: input, hidden and output width.

        Raises:
            UserError: if they are not.
        """
        raise UserError(
            f"expected networks that fit tasks of any size, got flat ones, which fit "
            f"{list(size)} alone: choose another update and element"
        )


TASK_DISTRIBUTIONS: Registry[type[TaskDistribution]] = Registry("problems")
"""Distributions of tasks by name: section 5.2's tasks and their relatives, ordinary training."""


@final
@TASK_DISTRIBUTIONS.register("regression")
@dataclass(frozen=True)
class RegressionTasks(TaskDistribution):
    """Section 5.2's regression and its relatives; each batch is of one family.

    A batch holds as many tasks as keep the number of weights, and so the work, that of
    ``batch_size`` 20x20 tasks.

    Attributes:
        widths: the sizes of each batch (samples, input, hidden, output) are drawn from these.
        rectangular: draw the four one by one, with samples <= input and <= hidden, instead of
            one for all.
        depths, slopes, distributions: those of each batch are drawn from these, one named twice
            twice as often; validation problems have the first of each, and width 20.
        loss: of the problems, "half_squared" or "norm".
        dtype: of the training problems' weights, "float32" or "float64"; in float64 no rounding
            noise hides what is left to learn. Validation problems and networks are float32.
        validation_families: of ``metaopt.tasks.FAMILIES``, with this loss, each validated on a
            quarter as many.
    """

    widths: tuple[int, ...] = (8, 12, 16, 20, 28, 40)
    rectangular: bool = True
    depths: tuple[int, ...] = (2, 2, 3)
    slopes: tuple[float, ...] = (0.1,)
    distributions: tuple[str, ...] = ("uniform",)
    loss: str = "half_squared"
    dtype: str = "float64"
    validation_families: tuple[str, ...] = ("width_40", "wide_hidden", "three_layers")

    def __post_init__(self) -> None:
        for name in ("widths", "depths"):
            sizes = getattr(self, name)
            if not sizes or min(sizes) < 1 or (name == "widths" and max(sizes) > LARGEST):
                raise UserError(
                    f"expected positive {name}, got {list(sizes)}: "
                    f"give whole numbers of 1 or more (widths: to {LARGEST})"
                )
        for name in ("slopes", "distributions"):
            if not getattr(self, name):
                raise UserError(f"expected {name} to draw from, got none: name at least one")
        if self.validation_families:
            check_names("validation_families", self.validation_families, FAMILIES)
        for depth, slope, distribution in product(self.depths, self.slopes, self.distributions):
            replace(
                self.reference,
                depth=depth,
                slope=slope,
                distribution=distribution,
                dtype=self.dtype,
            )

    @property
    def reference(self) -> RegressionFamily:
        """The family of the validation problems; the budget counts in problems of its size."""
        return RegressionFamily.square(
            REFERENCE_WIDTH,
            depth=self.depths[0],
            slope=self.slopes[0],
            distribution=self.distributions[0],
            loss=self.loss,
        )

    def draw(self, batch_size: int, generator: torch.Generator) -> Drawn:
        family = self.draw_family(generator)
        budget = batch_size * self.reference.coordinates
        count = max(1, round(budget / family.coordinates))
        return Drawn(family, draw_seeds(count, generator))

    def draw_family(self, generator: torch.Generator) -> RegressionFamily:
        """Square problems, or, if ``rectangular``, sizes drawn one by one.

        There are at most as many samples as inputs and as hidden units: with more than inputs
        eq. 78 is not exact, with more than hidden units eq. 79 is not, and the loss cannot reach
        zero.
        """
        width = one_of(self.widths, generator)
        samples = inputs = hidden = output = width
        if self.rectangular:
            inputs, hidden, output = (one_of(self.widths, generator) for _ in range(3))
            samples = min(width, inputs, hidden)
        return RegressionFamily(
            samples,
            inputs,
            hidden,
            output,
            depth=one_of(self.depths, generator),
            slope=one_of(self.slopes, generator),
            distribution=one_of(self.distributions, generator),
            loss=self.loss,
            dtype=self.dtype,
        )

    def validation(self, count: int) -> list[tuple[TaskFamily, int]]:
        """The reference family, and a quarter as many of each of the others."""
        others = [replace(FAMILIES[name], loss=self.loss) for name in self.validation_families]
        return [(self.reference, count), *((family, max(1, count // 4)) for family in others)]

    def check_one_size(self, size: tuple[int, int, int]) -> None:
        only = (REFERENCE_WIDTH,) * 3
        same = self.widths == only[:1] and self.depths == (2,) and not self.validation_families
        if not (same and size == only):
            raise UserError(
                f"expected widths [{REFERENCE_WIDTH}], depths [2], no validation_families and "
                f"flat_widths {list(only)} for flat networks, got {list(self.widths)}, "
                f"{list(self.depths)}, {list(self.validation_families)} and {list(size)}: set all "
                "four"
            )


MINIBATCH_VALIDATION: dict[str, MinibatchFamily] = {
    "classification": MinibatchFamily(),
    "images": MinibatchFamily(input=128, hidden=16, depth=3, decay=1.0, minibatch=20, noise=0.0),
    "regression": MinibatchFamily("regression", hidden=32, output=4, activation="tanh"),
    "residual": MinibatchFamily(
        "regression", input=16, hidden=24, output=3, depth=5, residual=True, minibatch=64
    ),
}
"""What optimizers that are trained on minibatches are validated on, by name."""


@final
@TASK_DISTRIBUTIONS.register("minibatches")
@dataclass(frozen=True)
class MinibatchTraining(TaskDistribution):
    """Ordinary training of small networks on minibatches, drawn from a wide mixture.

    A batch holds ``batch_size`` networks of one architecture.
    """

    chains: ClassVar[bool] = False
    smoothing: ClassVar[float] = 0.1

    def draw(self, batch_size: int, generator: torch.Generator) -> Drawn:
        def log_uniform(low: float, high: float) -> float:
            unit = float(torch.rand((), generator=generator))
            return float(low * (high / low) ** unit)

        kind = one_of(("classification", "regression"), generator)
        family = MinibatchFamily(
            kind=kind,
            input=round(log_uniform(8, 128)),
            hidden=round(log_uniform(8, 48)),
            output=round(log_uniform(2, 10) if kind == "classification" else log_uniform(1, 8)),
            depth=one_of((2, 3, 3, 4, 5), generator),
            samples=1024,
            minibatch=one_of((8, 16, 20, 32, 64, 128), generator),
            activation=one_of(("relu", "leaky_relu", "tanh", "gelu"), generator),
            residual=one_of((False, True), generator),
            weight_scale=log_uniform(0.5, 2.0),
            data_scale=log_uniform(0.5, 2.0),
            decay=log_uniform(0.1, 1.2),
            noise=log_uniform(0.01, 0.5),
        )
        return Drawn(family, draw_seeds(batch_size, generator))

    def validation(self, count: int) -> list[tuple[TaskFamily, int]]:
        """As many of each."""
        return [(family, count) for family in MINIBATCH_VALIDATION.values()]


def draw_seeds(count: int, generator: torch.Generator) -> list[int]:
    """As many training seeds."""
    seeds = [integer(generator, TRAINING.start, 2**53) for _ in range(count)]
    return check_seeds(seeds, "training")


def one_of(choices: Sequence[Choice], generator: torch.Generator) -> Choice:
    """One of them, each with the same chance."""
    if len(choices) == 1:
        return choices[0]
    return choices[integer(generator, 0, len(choices))]


def integer(generator: torch.Generator, low: int, high: int) -> int:
    """Uniform on [low, high)."""
    return int(torch.randint(low, high, (), generator=generator))
