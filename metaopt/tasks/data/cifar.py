"""Read the binary version of CIFAR-10: a label of one byte and 3072 bytes of pixels an image.

The pixels are the red plane, then the green one, then the blue one, each row by row.
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
    """Read all records of a file, which does not say how many it has.

    At most one byte more than ``most`` records is read, whatever the file decompresses to.

    Args:
        path: the file, gzipped or not.
        size: bytes of a record.
        most: the largest number of records that is accepted.

    Returns:
        uint8 ``(n, size)``.

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
    """Read the labelled images of several files, one after another.

    Args:
        files: files of equal size, gzipped or not.
        shape: channels, height and width of an image.
        classes: the number of classes; labels are 0 ... ``classes`` - 1.
        most: the largest number of images of all files together.

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
