"""Multilayer perceptrons on images: on MNIST of 8×8 pixels, and on Fashion-MNIST of 28×28."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from metaopt.tasks.suite.base import PairTask, Parts
from metaopt.tasks.suite.images import CLASSES, image_parts

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda width: nn.Identity(),
    "layer": nn.LayerNorm,
    "batch": nn.BatchNorm1d,
}
"""What may stand before a hidden layer, by name."""


class Residual(nn.Module):
    """Adds what a module says of a stream to the stream.

    Args:
        inner: keeps the shape.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream with what was added.

        Args:
            x: the stream.
        """
        return x + self.inner(x)  # type: ignore[no-any-return]


class Stretched(nn.Module):
    """An activation of a multiple of its input.

    Args:
        inner: the activation.
        factor: the multiple.
    """

    def __init__(self, inner: nn.Module, factor: float) -> None:
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation.

        Args:
            x: its input, before it is multiplied.
        """
        return self.inner(self.factor * x)  # type: ignore[no-any-return]


def perceptron(
    inputs: int,
    width: int,
    hidden: int,
    outputs: int,
    activation: Callable[[], nn.Module] = nn.ReLU,
    norm: str = "none",
    residual: bool = False,
    stretch: float = 1.0,
) -> nn.Sequential:
    """Return a multilayer perceptron that flattens its inputs.

    Args:
        inputs: numbers of an input.
        width: of the hidden layers.
        hidden: number of hidden layers, 1 or more.
        outputs: numbers of an output.
        activation: makes the activation of a hidden layer.
        norm: a key of ``NORMS``.
        residual: whether hidden layers after the first are added to a stream.
        stretch: by which weights and biases before activations are divided, and what activations
            see is multiplied. The network says the same. Networks of sines begin like this.
    """
    linear = partial(_divided, stretch)

    def steeper() -> nn.Module:
        return activation() if stretch == 1 else Stretched(activation(), stretch)

    layers: list[nn.Module] = [nn.Flatten(), linear(inputs, width), steeper()]
    for _ in range(hidden - 1):
        block = nn.Sequential(NORMS[norm](width), linear(width, width), steeper())
        layers.append(Residual(block) if residual else block)
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def _divided(factor: float, inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.div_(factor)
    return layer


class MnistMlp(PairTask):
    """Three hidden layers of 64 ReLUs say the digit of an image of 8×8 pixels; batches of 64.

    Args:
        data_dir: the folder that has a folder of each data set; by default ``$METAOPT_DATA``.
    """

    def __init__(self, data_dir: str | Path | None = None) -> None:
        super().__init__(64, data_dir)

    def parts(self) -> Parts:
        """Return the images and digits of each split."""
        return image_parts("mnist", 8, self.data_dir)

    def build(self) -> nn.Module:
        """Return a fresh network."""
        return perceptron(64, 64, 3, CLASSES)


class FashionMlp(PairTask):
    """Four hidden layers of 128 ReLUs say the garment of an image of 28×28; batches of 128.

    Args:
        data_dir: the folder that has a folder of each data set; by default ``$METAOPT_DATA``.
    """

    def __init__(self, data_dir: str | Path | None = None) -> None:
        super().__init__(128, data_dir)

    def parts(self) -> Parts:
        """Return the images and garments of each split."""
        return image_parts("fashion-mnist", 28, self.data_dir)

    def build(self) -> nn.Module:
        """Return a fresh network."""
        return perceptron(784, 128, 4, CLASSES)
