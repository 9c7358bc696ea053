"""An autoencoder: images through a narrow layer."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from metaopt.tasks.suite.base import Pair, PairTask, Parts
from metaopt.tasks.suite.images import image_parts


def autoencoder(
    pixels: int,
    width: int,
    code: int,
    hidden: int = 1,
    activation: Callable[[], nn.Module] = nn.GELU,
) -> nn.Sequential:
    """Return an encoder and a decoder of the same shape.

    Args:
        pixels: of an image.
        width: of the hidden layers.
        code: width of the narrow layer.
        hidden: number of hidden layers of each of the two, 1 or more.
        activation: makes the activation of a hidden layer.
    """
    sizes = [pixels, *[width] * hidden, code, *[width] * hidden, pixels]
    layers: list[nn.Module] = [nn.Flatten()]
    for into, out in pairwise(sizes):
        layers += [nn.Linear(into, out), activation()]
    del layers[-1], layers[2 * (hidden + 1)]  # no activation of the image and of the code
    return nn.Sequential(*layers)


class Autoencoder(PairTask):
    """Networks 784-128-16-128-784 with GELU reproduce digits of 28×28 pixels; batches of 64.

    Args:
        data_dir: the folder that has a folder of each data set; by default ``$METAOPT_DATA``.
    """

    def __init__(self, data_dir: str | Path | None = None) -> None:
        super().__init__(64, data_dir)

    def parts(self) -> Parts:
        """Return the images and digits of each split; the digits are not used."""
        return image_parts("mnist", 28, self.data_dir)

    def build(self) -> nn.Module:
        """Return a fresh network."""
        return autoencoder(784, 128, 16)

    def loss(self, model: nn.Module, batch: Pair) -> Tensor:
        """Return the mean squared error of a pixel, whose variance is 1.

        Args:
            model: the autoencoder.
            batch: images, and what is not used.
        """
        return reconstruction(model, batch)

    def metrics(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Return nothing: the loss says it all.

        Args:
            model: the autoencoder.
            batch: images, and what is not used.
        """
        return {}


def reconstruction(model: nn.Module, batch: Pair) -> Tensor:
    """Return the mean squared error of a pixel.

    Args:
        model: an autoencoder.
        batch: images, and what is not used.
    """
    x, _ = batch
    return functional.mse_loss(model(x), x.flatten(1))
