"""Task distributions: what a learned optimizer is trained and validated on, by name.

A task distribution draws the next batch of tasks to train on, and names the task families to
validate on. It is a frozen dataclass, whose fields are flags of ``train_meta.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import ClassVar, NamedTuple, TypeVar, final

import torch

from metaopt.checks import check_names, check_whole
from metaopt.errors import UserError
from metaopt.registry import Registry
from metaopt.tasks import (
    FAMILIES,
    MinibatchFamily,
    NetworkFamily,
    RegressionFamily,
    TaskBatch,
    TaskSampler,
)
from metaopt.tasks.regression import LARGEST
from metaopt.tasks.seeds import TRAINING

Choice = TypeVar("Choice")

REFERENCE_WIDTH = 20
ROUNDING = 1e-6  # a loss of 0 may come out below 0 by as much


class Drawn(NamedTuple):
    """A batch of tasks that was drawn and is not built yet, so that it can be built in parts.

    Attributes:
        family: the task family that builds the tasks.
        seeds: one seed for each task of the batch.
    """

    family: TaskSampler
    seeds: list[int]

    def sample(self) -> TaskBatch:
        """Return the whole batch of tasks."""
        return self.family.sample(self.seeds)


class TaskDistribution(ABC):
    """A distribution of tasks to train a learned optimizer on, with tasks to validate it on.

    A subclass is a frozen dataclass of its own fields.

    Attributes:
        chains: whether each task is a chain of layers, on which a group can act.
        smoothing: a validation loss at step t is the mean over the last ``smoothing * (t + 1)``
            steps, at least one; 0 takes the loss of the step itself.
        eval_batches: how many batches of the validation split give the validation losses; 0 for
            tasks without one, whose training losses are taken.
    """

    chains: ClassVar[bool] = True
    smoothing: ClassVar[float] = 0.0
    eval_batches: int = 0

    def check(self) -> None:  # noqa: B027
        """Check what a run is going to ask of the tasks, before it begins; nothing by default.

        Raises:
            UserError: for tasks that cannot be trained on.
        """

    def horizon(self, steps: int, generator: torch.Generator) -> tuple[int, bool]:
        """Return the length of the next trajectory, and whether the rule is told it.

        By default it is that of the config, and the rule is told.

        Args:
            steps: of the config.
            generator: the source of all random choices.
        """
        return steps, True

    def most(self, batch_size: int) -> int | None:
        """Return the most tasks that a batch may hold; None, the default, where it is not known.

        Args:
            batch_size: see :meth:`draw`.
        """
        return None

    @abstractmethod
    def draw(self, batch_size: int, generator: torch.Generator) -> Drawn:
        """Draw the next batch of tasks to train on.

        Args:
            batch_size: how large the batch is, in tasks of the distribution's reference size.
            generator: the source of all random choices.

        Returns:
            A task family and training seeds.
        """

    @abstractmethod
    def validation(self, count: int) -> list[tuple[TaskSampler, int]]:
        """Return the task families to validate on, each with a number of tasks.

        Args:
            count: tasks of the first family.
        """

    def check_one_size(self, size: tuple[int, int, int]) -> None:
        """Check that all tasks are two-layer networks of one size, as flat update rules need.

        Args:
            size: width of the input, of the hidden layer and of the output.

        Raises:
            UserError: if some task, of training or validation, has another size.
        """
        raise UserError(
            f"expected networks that fit tasks of any size, got flat ones, which fit "
            f"{list(size)} alone: choose another update and element"
        )


TASK_DISTRIBUTIONS: Registry[type[TaskDistribution]] = Registry("problems")
"""Task distributions by name, the values of ``--problems`` of ``train_meta.py``."""


@final
@TASK_DISTRIBUTIONS.register("regression")
@dataclass(frozen=True)
class RegressionTasks(TaskDistribution):
    """The regression tasks of section 5.2, in many sizes; each batch is of one size.

    A batch holds so many tasks that its number of weights, and so the work, is that of
    ``batch_size`` tasks of width 20.

    Attributes:
        widths: widths to choose from. Each batch draws its number of samples and its input, hidden
            and output width from this list.
        rectangular: draw the number of samples and the three widths one by one, with no more
            samples than input and hidden units. If false, they are all the same.
        depths: numbers of layers to choose from. Each batch draws one. A value that is listed twice
            is drawn twice as often. Validation tasks have the first value.
        slopes: negative slopes of LeakyReLU to choose from, drawn like the depths.
        distributions: distributions of weights and data to choose from, "uniform" on [0, 1) or
            "normal", drawn like the depths.
        loss: the loss of the tasks: "half_squared" is 1/2 ||Y - F(X)||^2, "norm" is ||Y - F(X)||.
        dtype: data type of the training tasks, "float32" or "float64". In float64 no rounding hides
            how far a loss can still fall. Validation tasks and the trained networks are float32.
        validation_families: names of further task families, of ``metaopt.tasks.FAMILIES``, to
            validate on. Each gets a quarter of validation_problems.
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
        for name in ("widths", "depths", "slopes", "distributions"):
            if not getattr(self, name):
                raise UserError(f"expected {name} to draw from, got none: name at least one")
        for width in self.widths:
            check_whole("widths", width, 1, LARGEST)
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
        """The task family that validation uses first and whose size ``batch_size`` counts in."""
        return RegressionFamily.square(
            REFERENCE_WIDTH,
            depth=self.depths[0],
            slope=self.slopes[0],
            distribution=self.distributions[0],
            loss=self.loss,
        )

    def draw(self, batch_size: int, generator: torch.Generator) -> Drawn:
        """Draw a family of one size, and as many seeds as keep the work of a batch the same.

        See :meth:`TaskDistribution.draw`.
        """
        family = self.draw_family(generator)
        return Drawn(family, draw_seeds(self._count(batch_size, family), generator))

    def most(self, batch_size: int) -> int:
        """Return how many of the smallest tasks make a batch. See the base class."""
        smallest = RegressionFamily.square(min(self.widths), depth=min(self.depths))
        return self._count(batch_size, smallest)

    def _count(self, batch_size: int, family: RegressionFamily) -> int:
        """As many tasks of a family as have the weights of ``batch_size`` tasks of width 20."""
        return max(1, round(batch_size * self.reference.coordinates / family.coordinates))

    def draw_family(self, generator: torch.Generator) -> RegressionFamily:
        """Draw the sizes, the activation and the data of a batch.

        There are at most as many samples as inputs and as hidden units. With more samples than
        inputs the action of eq. 78 is not exact, with more than hidden units that of eq. 79 is not,
        and the loss cannot reach zero.

        Args:
            generator: the source of all random choices.
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

    def validation(self, count: int) -> list[tuple[TaskSampler, int]]:
        """Return the reference family, then the others with a quarter as many tasks each.

        See :meth:`TaskDistribution.validation`.
        """
        others = [replace(FAMILIES[name], loss=self.loss) for name in self.validation_families]
        return [(self.reference, count), *((family, max(1, count // 4)) for family in others)]

    def check_one_size(self, size: tuple[int, int, int]) -> None:
        """Check that all tasks have width 20 and two layers.

        See :meth:`TaskDistribution.check_one_size`.
        """
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
"""Task families that optimizers trained on minibatches are validated on, by name."""


@final
@TASK_DISTRIBUTIONS.register("minibatches")
@dataclass(frozen=True)
class MinibatchTraining(TaskDistribution):
    """Ordinary training of small networks on minibatches, of many sizes and kinds.

    A batch holds ``batch_size`` networks of one architecture.
    """

    chains: ClassVar[bool] = False
    smoothing: ClassVar[float] = 0.1

    def most(self, batch_size: int) -> int:
        """Return ``batch_size``, as each task counts as one. See :meth:`TaskDistribution.most`."""
        return batch_size

    def draw(self, batch_size: int, generator: torch.Generator) -> Drawn:
        """Draw an architecture, data and a minibatch size. See :meth:`TaskDistribution.draw`."""

        log_uniform = partial(drawn_evenly_in_logarithms, generator)

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

    def validation(self, count: int) -> list[tuple[TaskSampler, int]]:
        """Return ``count`` tasks of each family of ``MINIBATCH_VALIDATION``.

        See :meth:`TaskDistribution.validation`.
        """
        return [(family, count) for family in MINIBATCH_VALIDATION.values()]


NETWORK_VALIDATION: dict[str, NetworkFamily] = {
    "relu": NetworkFamily(depth=2, hidden=22, samples=70),
    "tanh": NetworkFamily(activation="tanh", depth=3, hidden=18, samples=60),
    "gelu": NetworkFamily(activation="gelu", depth=4, hidden=24, samples=100),
    "few_samples": NetworkFamily(activation="leaky_relu", bias=False, depth=2, samples=12),
    "many_samples": NetworkFamily(
        activation="sigmoid", depth=3, hidden=16, samples=192, mixed=True
    ),
    "deep": NetworkFamily(activation="gelu", depth=6, hidden=20, samples=100),
    "classes": NetworkFamily(depth=3, hidden=20, output=4, samples=240, loss="cross_entropy"),
}
"""Task families that optimizers trained on small networks are validated on, by name."""


@final
@TASK_DISTRIBUTIONS.register("networks")
@dataclass(frozen=True)
class NetworkTraining(TaskDistribution):
    """Small networks of many kinds on full batches, and tasks of section 5.2, all in float64.

    A batch holds tasks of one kind. Every other batch, in the mean, is of section 5.2, where m2 can
    act, and the others are ``batch_size`` networks each.
    """

    def most(self, batch_size: int) -> int:
        """Return ``batch_size``, as each task counts as one. See :meth:`TaskDistribution.most`."""
        return batch_size

    def draw(self, batch_size: int, generator: torch.Generator) -> Drawn:
        """Draw a kind of network, its data and its sizes. See :meth:`TaskDistribution.draw`."""

        log_uniform = partial(drawn_evenly_in_logarithms, generator)

        if integer(generator, 0, 2) == 0:
            family: TaskSampler = RegressionTasks().draw_family(generator)
            return Drawn(family, draw_seeds(batch_size, generator))
        hidden = round(log_uniform(8, 32))
        loss = one_of(("half_squared",) * 3 + ("cross_entropy",), generator)
        family = NetworkFamily(
            input=round(log_uniform(4, 20)),
            hidden=hidden,
            output=integer(generator, 1 if loss == "half_squared" else 2, 5),
            depth=one_of((2, 2, 2, 3, 3, 3, 4, 4, 5, 6), generator),
            samples=max(4, round(hidden * log_uniform(0.4, 16))),
            activation=one_of(
                ("relu", "leaky_relu", "steep_leaky_relu", "tanh", "gelu", "sigmoid", "softplus"),
                generator,
            ),
            bias=one_of((True, True, False), generator),
            mixed=one_of((False, True), generator),
            data_scale=log_uniform(0.3, 3.0),
            weight_scale=one_of((1.0, 1.0, log_uniform(0.5, 2.0)), generator),
            teacher=2.0 * float(torch.rand((), generator=generator)),
            noise=one_of((0.1, 1.0), generator),
            loss=loss,
            dtype="float64",
        )
        return Drawn(family, draw_seeds(batch_size, generator))

    def validation(self, count: int) -> list[tuple[TaskSampler, int]]:
        """Return ``count`` tasks of each family of ``NETWORK_VALIDATION``, and some of section 5.2.

        See :meth:`TaskDistribution.validation`.
        """
        own: list[tuple[TaskSampler, int]] = [
            (replace(family, dtype="float64"), count) for family in NETWORK_VALIDATION.values()
        ]
        return [*own, (RegressionTasks().reference, count)]


def check_losses(lowest: float) -> None:
    """Check that losses are not below 0, as their logarithms are taken.

    Args:
        lowest: the lowest of them. NaN passes, as other code counts it.

    Raises:
        UserError: if it is below 0 by more than rounding.
    """
    if lowest < -ROUNDING:
        raise UserError(
            "expected losses of 0 or more, as meta-losses and validation scores are logarithms, "
            f"got {lowest:.3g}: add a constant to the loss of the task, which changes no gradient"
        )


def draw_seeds(count: int, generator: torch.Generator) -> list[int]:
    """Draw seeds of training tasks, which validation and test tasks never have.

    Args:
        count: how many.
        generator: the source of randomness.
    """
    return [integer(generator, TRAINING.start, 2**53) for _ in range(count)]


def drawn_evenly_in_logarithms(generator: torch.Generator, low: float, high: float) -> float:
    """Draw a number between two positive ones, with its logarithm uniform.

    Args:
        generator: the source of randomness.
        low: the lowest.
        high: the highest.
    """
    unit = float(torch.rand((), generator=generator))
    return float(low * (high / low) ** unit)


def one_of(choices: Sequence[Choice], generator: torch.Generator) -> Choice:
    """Draw one of several choices, each with the same chance.

    Args:
        choices: what to choose from; with a single choice nothing is drawn.
        generator: the source of randomness.
    """
    if len(choices) == 1:
        return choices[0]
    return choices[integer(generator, 0, len(choices))]


def integer(generator: torch.Generator, low: int, high: int) -> int:
    """Draw a whole number from [low, high), each with the same chance."""
    return int(torch.randint(low, high, (), generator=generator))
