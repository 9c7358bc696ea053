"""The settings of section 4 for each data set: widths, rates, and what the paper found."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metaopt.tasks.data import Dataset, split, standardized


@dataclass(frozen=True)
class Setting:
    """Appendices F.3 and F.4, for one data set.

    Attributes:
        widths: of the hidden layers in the correlation study.
        teleported: the same in the teleport study.
        rate: of SGD.
        finer: what the displacements 0.001, 0.011, ..., 0.191 are multiplied by in the released
            code, where the paper prints the same list for all.
        sharpness, curvature: Table 1, Pearson with the validation loss.
        few: images on which the Hessian is taken.
    """

    widths: tuple[int, int]
    teleported: tuple[int, int]
    rate: float
    finer: float
    sharpness: float
    curvature: float
    few: int = 1000


SETTINGS = {
    "mnist": Setting((16, 10), (16, 10), 0.01, 1.0, 0.704, -0.050),
    "fashion-mnist": Setting((16, 10), (16, 10), 0.01, 0.1, 0.790, -0.232),
    "cifar10": Setting((128, 32), (32, 10), 0.02, 0.1, 0.899, -0.167, few=300),
}

Rows = tuple[Tensor, Tensor]
"""Pixels in [0, 1], ``(images, pixels)``, and classes ``(images,)``."""


def rows_of(dataset: Dataset, images: int, tested: int) -> tuple[Rows, Rows]:
    """Return training images, drawn once for all, and test images, each image as a row.

    Args:
        dataset: what they are taken from.
        images: at most so many for training; of MNIST 50,000 of 60,000, as in the paper.
        tested: at most so many of the test images, which the paper calls the validation set.
    """
    train = dataset.train
    if len(train.labels) > images:
        rest = len(train.labels) - images
        train, _ = split(train, rest, torch.Generator().manual_seed(1))
    pixels, labels = dataset.test
    return (
        (standardized(train).flatten(1), train.labels),
        (standardized(pixels[:tested]).flatten(1), labels[:tested]),
    )
