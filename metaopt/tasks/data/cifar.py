"""CIFAR-10's binary version: records of one byte for the label and 3072 for the pixels.

Pixels are the red plane, the green one, the blue one, each row by row.
Source: A. Krizhevsky's page of CIFAR-10, "binary version".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from metaopt.tasks.data.files import opened, unusable
from metaopt.tasks.data.images import Images
from metaopt.tasks.data.labels import checked


def read_records(path: Path, size: int, most: int) -> Tensor:
    """uint8 ``(n, size)``: all records of a file, which does not say how many it has.

    At most one byte is read beyond what ``most`` records take.

    Raises:
        UserError: if the file is anything but 1 to ``most`` whole records.
    """
    with opened(path) as file:
        content = bytearray(file.read(most * size + 1))
    if not content or len(content) % size:  # the one byte too many makes no whole record either
        amount = "more" if len(content) > most * size else f"{len(content)} bytes"
        raise unusable(f"1 to {most} records of {size} bytes", amount, path)
    return torch.frombuffer(content, dtype=torch.uint8).reshape(-1, size)


def read_cifar(
    files: Sequence[Path], shape: tuple[int, int, int], classes: int, most: int
) -> Images:
    """The images of all ``files``, one after another; each has its share of ``most``.

    Raises:
        UserError: if a file is damaged.
    """
    size = 1 + math.prod(shape)
    parts = [read_records(path, size, most // len(files)) for path in files]
    labels = [
        checked(part[:, 0].to(torch.int64), classes, path)
        for part, path in zip(parts, files, strict=True)
    ]
    return Images(torch.cat([part[:, 1:] for part in parts]).reshape(-1, *shape), torch.cat(labels))
