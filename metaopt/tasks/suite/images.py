"""The images of the suite: 20,000 to train on, 2,000 to choose by, 2,000 to report."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from metaopt.storage import user_path
from metaopt.tasks.data import Images, load, split, standardized
from metaopt.tasks.suite.base import Parts

TRAIN, HELD_OUT = 20_000, 2_000
CLASSES = 10


@lru_cache(maxsize=6)
def image_parts(name: str, side: int, data_dir: str | Path | None = None) -> Parts:
    """Load grey images, average their pixels to a smaller size, and standardize them.

    The mean and the standard deviation are one number each, of the training images.

    Args:
        name: "mnist" or "fashion-mnist".
        side: pixels of a side, 28 or fewer.
        data_dir: the folder that has a folder of each data set; by default ``$METAOPT_DATA``.

    Returns:
        For each split float32 ``(n, 1, side, side)``, and the classes ``(n,)``.
    """
    found = load(name, None if data_dir is None else user_path(data_dir) / name)
    few = min(TRAIN + HELD_OUT, len(found.train.labels))
    held_out = min(HELD_OUT, few // 4)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(found.train.labels), generator=generator)[:few]
    chosen = Images(found.train.pixels[order], found.train.labels[order])
    train, validation = split(chosen, held_out, generator)
    test = Images(found.test.pixels[:HELD_OUT], found.test.labels[:HELD_OUT])
    pooled = [_pooled(part, side) for part in (train, validation, test)]
    mean, std = pooled[0].mean(), pooled[0].std()
    kept = zip(("train", "validation", "test"), pooled, (train, validation, test), strict=True)
    return {name: ((pixels - mean) / std, part.labels) for name, pixels, part in kept}


def _pooled(images: Images, side: int) -> Tensor:
    pixels = standardized(images)
    return pixels if pixels.shape[-1] == side else functional.adaptive_avg_pool2d(pixels, side)
