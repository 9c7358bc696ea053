"""Families of the kinds of the suite that may be trained on, of varied sizes and depths.

Nothing of the held-out kinds is here: no depthwise convolution, no attention, no adapter, no table.
A task of a family has its module, its data and its batch size drawn by its seed.
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from metaopt.tasks.suite.autoencoder import autoencoder, reconstruction
from metaopt.tasks.suite.base import Pair, PairTask, Parts, TextTask
from metaopt.tasks.suite.images import CLASSES, image_parts
from metaopt.tasks.suite.lstm_characters import RecurrentModel
from metaopt.tasks.suite.mlp import NORMS, perceptron
from metaopt.tasks.suite.residual import residual_network
from metaopt.tasks.suite.text import source_text
from metaopt.tasks.task import Task, TaskFamily

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": partial(nn.LeakyReLU, 0.1),
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
}
"""Activations of the families by name."""

Choice = TypeVar("Choice")

MOST_PLAIN = 5
"""Hidden layers of the deepest perceptron without shortcuts, which deeper ones need."""


class Draw:
    """Draws the sizes of a task from its seed.

    Args:
        seed: of the task.
    """

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def one_of(self, choices: Sequence[Choice]) -> Choice:
        """Return one of several, each as likely.

        Args:
            choices: at least one.
        """
        return choices[int(torch.randint(len(choices), (), generator=self.generator))]

    def size(self, low: int, high: int) -> int:
        """Return a whole number whose logarithm is uniform.

        Args:
            low: the least.
            high: the most.
        """
        part = float(torch.rand((), generator=self.generator, dtype=torch.float64))
        return min(high, int(math.exp(math.log(low) + part * math.log((high + 1) / low))))

    def seed(self) -> int:
        """Return a seed of something else."""
        return int(torch.randint(2**62, (), generator=self.generator))


class DrawnPairs(PairTask):
    """A task of a family on pairs in memory.

    Args:
        parts: returns the pairs of each split.
        build: returns a fresh module.
        batch: pairs of a minibatch.
        reproduces: whether the module reproduces its inputs, instead of saying a class.
    """

    def __init__(
        self,
        parts: Callable[[], Parts],
        build: Callable[[], nn.Module],
        batch: int,
        reproduces: bool = False,
    ) -> None:
        super().__init__(batch)
        self._parts, self._build, self.reproduces = parts, build, reproduces

    def parts(self) -> Parts:
        """Return the pairs of each split."""
        return self._parts()

    def build(self) -> nn.Module:
        """Return a fresh module."""
        return self._build()

    def loss(self, model: nn.Module, batch: Pair) -> Tensor:
        """Return the cross entropy, or the mean squared error of what is reproduced.

        Args:
            model: what :meth:`build` returned.
            batch: inputs and classes.
        """
        return reconstruction(model, batch) if self.reproduces else super().loss(model, batch)

    def metrics(self, model: nn.Module, batch: Pair) -> dict[str, Tensor]:
        """Return the accuracy of classes.

        Args:
            model: what :meth:`build` returned.
            batch: inputs and classes.
        """
        return {} if self.reproduces else super().metrics(model, batch)


class DrawnText(TextTask):
    """A task of a family on the standard library's sources.

    Args:
        build: returns a fresh module.
        batch: windows of a minibatch.
        length: characters of a window.
    """

    def __init__(self, build: Callable[[], nn.Module], batch: int, length: int) -> None:
        super().__init__(batch, length)
        self._build = build

    def text(self) -> dict[str, Tensor]:
        """Return the characters of each split."""
        return source_text()

    def build(self) -> nn.Module:
        """Return a fresh module."""
        return self._build()


def synthetic_parts(inputs: int, classes: int, seed: int, samples: int = 4096) -> Parts:
    """Return inputs around random centres, in classes that several centres share.

    Args:
        inputs: numbers of an input.
        classes: number of classes.
        seed: draws the centres, their spread and the inputs.
        samples: of the training split; the others have an eighth of it each.

    Returns:
        For each split float32 ``(n, inputs)``, and the classes ``(n,)``.
    """
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4 * classes, inputs, generator=generator)
    spread = 0.3 + 0.5 * torch.rand((), generator=generator)
    parts = {}
    for split, n in (("train", samples), ("validation", samples // 8), ("test", samples // 8)):
        centre = torch.randint(4 * classes, (n,), generator=generator)
        noise = torch.randn(n, inputs, generator=generator)
        parts[split] = centres[centre] + spread * noise, centre % classes
    return parts


class ImageFamily(TaskFamily, ABC):
    """What families on images share.

    Args:
        data_dir: the folder that has a folder of each data set; by default ``$METAOPT_DATA``.
    """

    def __init__(self, data_dir: str | Path | None = None) -> None:
        self.data_dir = data_dir


class MlpFamily(ImageFamily):
    """Multilayer perceptrons of 1 to 12 hidden layers, 16 to 256 wide.

    They classify digits, garments or random clusters. Six activations; no norm, layer norm or batch
    norm; with shortcuts where they are deep. Batches have 16 to 256 pairs.

    Args:
        data_dir: the folder that has a folder of each data set; by default ``$METAOPT_DATA``.
    """

    DATA: ClassVar[tuple[str, ...]] = ("mnist", "fashion-mnist", "synthetic")

    def sample(self, seed: int) -> Task:
        """Return the task of a seed.

        Args:
            seed: from 0 to 2^63 - 1.
        """
        draw = Draw(seed)
        data, hidden, width = draw.one_of(self.DATA), draw.size(1, 12), draw.size(16, 256)
        residual = hidden > MOST_PLAIN or draw.one_of((False, True))
        norm, activation = draw.one_of(list(NORMS)), ACTIVATIONS[draw.one_of(list(ACTIVATIONS))]
        batch = draw.size(16, 256)
        if data == "synthetic":
            inputs, classes = draw.size(8, 64), draw.size(2, 20)
            parts = partial(synthetic_parts, inputs, classes, draw.seed())
        else:
            side, classes = draw.one_of((7, 8, 14, 28)), CLASSES
            inputs = side * side
            parts = partial(image_parts, data, side, self.data_dir)
        build = partial(
            perceptron, inputs, width, hidden, classes, activation, norm, residual
        )  # fmt: skip
        return DrawnPairs(parts, build, batch)


class AutoencoderFamily(ImageFamily):
    """Autoencoders of digits or garments, 1 to 4 hidden layers to either side of the code.

    Args:
        data_dir: the folder that has a folder of each data set; by default ``$METAOPT_DATA``.
    """

    def sample(self, seed: int) -> Task:
        """Return the task of a seed.

        Args:
            seed: from 0 to 2^63 - 1.
        """
        draw = Draw(seed)
        data, side = draw.one_of(("mnist", "fashion-mnist")), draw.one_of((8, 14, 28))
        build = partial(
            autoencoder,
            side * side,
            draw.size(32, 256),
            draw.size(4, 32),
            draw.size(1, 4),
            ACTIVATIONS[draw.one_of(list(ACTIVATIONS))],
        )
        parts = partial(image_parts, data, side, self.data_dir)
        return DrawnPairs(parts, build, draw.size(16, 256), reproduces=True)


class ResidualFamily(ImageFamily):
    """Residual convolutional networks with batch norm, of 1 to 12 blocks in up to three stages.

    Args:
        data_dir: the folder that has a folder of each data set; by default ``$METAOPT_DATA``.
    """

    def sample(self, seed: int) -> Task:
        """Return the task of a seed.

        Args:
            seed: from 0 to 2^63 - 1.
        """
        draw = Draw(seed)
        data, side = draw.one_of(("mnist", "fashion-mnist")), draw.one_of((7, 8, 14))
        first, stages = draw.size(4, 24), draw.size(1, 3)
        blocks = draw.size(1, 12 // stages)
        widths = tuple(first * 2**stage for stage in range(stages))
        activation = ACTIVATIONS[draw.one_of(list(ACTIVATIONS))]
        build = partial(residual_network, widths, blocks, CLASSES, activation)
        parts = partial(image_parts, data, side, self.data_dir)
        return DrawnPairs(parts, build, draw.size(8, 64))


class LstmFamily(TaskFamily):
    """LSTMs of 1 to 3 layers on the standard library's sources, in plain operations.

    So copies can be stacked; ``torch.nn.LSTM`` cannot be mapped over copies.
    """

    def sample(self, seed: int) -> Task:
        """Return the task of a seed.

        Args:
            seed: from 0 to 2^63 - 1.
        """
        draw = Draw(seed)
        build = partial(
            RecurrentModel, draw.size(8, 48), draw.size(16, 128), draw.size(1, 3), plain=True
        )
        return DrawnText(build, draw.size(4, 32), draw.size(8, 48))


class SuiteFamily(TaskFamily):
    """All kinds that may be trained on: half of the tasks are perceptrons, a sixth is each other.

    Args:
        data_dir: the folder that has a folder of each data set; by default ``$METAOPT_DATA``.
    """

    def __init__(self, data_dir: str | Path | None = None) -> None:
        mlps, autoencoders = MlpFamily(data_dir), AutoencoderFamily(data_dir)
        others = (autoencoders, ResidualFamily(data_dir), LstmFamily())
        self.families: tuple[TaskFamily, ...] = (mlps, mlps, mlps, *others)

    def sample(self, seed: int) -> Task:
        """Return the task of a seed.

        Args:
            seed: from 0 to 2^63 - 1.
        """
        draw = Draw(seed)
        return draw.one_of(self.families).sample(draw.seed())
