"""Labelled images in memory: their pixels as input of a network, and a validation split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metaopt.errors import UserError


class Images(NamedTuple):
    """Labelled images in memory.

    Attributes:
        pixels: uint8 ``(n, channels, height, width)``.
        labels: int64 ``(n,)``, the class of each image.
    """

    pixels: Tensor
    labels: Tensor


class Dataset(NamedTuple):
    """The training and the test images of a data set.

    Attributes:
        name: a key of ``DATASETS``.
        train: the training images.
        test: the test images, from other files.
    """

    name: str
    train: Images
    test: Images


def standardized(
    images: Images | Tensor,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> Tensor:
    """Turn pixels into input of a network, (pixels / 255 - mean) / std in float32.

    Compute ``mean`` and ``std`` on training images, so that nothing is learned from test images.

    Args:
        images: labelled images, or their uint8 pixels ``(n, channels, height, width)`` alone.
        mean: what is subtracted: one number or one a channel, where white is 1. By default 0.
        std: what is divided by: one number or one a channel, where white is 1. By default 1.

    Returns:
        float32, of the shape of the pixels; in [0, 1] without ``mean`` and ``std``.

    Raises:
        UserError: for pixels of another type, or a ``mean`` or ``std`` that does not fit them.

    >>> standardized(torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)).flatten()
    tensor([0.0000, 0.2000, 1.0000])
    """
    pixels = images.pixels if isinstance(images, Images) else images
    if pixels.dtype != torch.uint8 or pixels.dim() != 4:
        raise UserError(
            f"expected uint8 pixels (n, channels, height, width), got {pixels.dtype} "
            f"{tuple(pixels.shape)}: pass them as they were loaded"
        )
    scaled = pixels.to(torch.float32).div_(255)
    if mean is not None:
        scaled.sub_(_each_channel("mean", mean, scaled))
    if std is not None:
        divisor = _each_channel("std", std, scaled)
        if not (divisor > 0).all():
            raise UserError(f"expected a std above 0, got {std}: leave it out for constant pixels")
        scaled.div_(divisor)
    return scaled


def split(
    images: Images, held_out: float | int, generator: torch.Generator
) -> tuple[Images, Images]:
    """Split images at random into those for training and those for validation.

    Args:
        images: what is split; each image is in one of the two parts.
        held_out: the number (int) or the fraction (float) of validation images.
        generator: draws the split; equal states of it give equal splits.

    Returns:
        The training images, and the validation images.

    Raises:
        UserError: if one of the two would be empty.
    """
    total = len(images.labels)
    count = held_out
    if isinstance(held_out, float):
        count = round(held_out * total) if 0 < held_out < 1 else 0
    if not 0 < count < total:
        raise UserError(
            f"expected from 1 to {total - 1} of {total} images for validation, got {held_out}: "
            f"give a number of images, or a fraction between 0.0 and 1.0"
        )
    order = torch.randperm(total, generator=generator, device=generator.device)
    order = order.to(images.labels.device)
    train, validation = order[count:], order[:count]
    return (
        Images(images.pixels[train], images.labels[train]),
        Images(images.pixels[validation], images.labels[validation]),
    )


def _each_channel(what: str, values: float | Sequence[float], pixels: Tensor) -> Tensor:
    """Return one value or one a channel, as ``(1 or channels, 1, 1)``."""
    given = torch.as_tensor(values, dtype=torch.float32, device=pixels.device).reshape(-1)
    channels = pixels.shape[1]
    if len(given) not in {1, channels} or not given.isfinite().all():
        raise UserError(
            f"expected a finite {what}, one number or one for each of {channels} channels, "
            f"got {values}: compute it on the training images"
        )
    return given.reshape(-1, 1, 1)
