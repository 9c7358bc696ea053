"""Read IDX files, the format of MNIST: a magic number, the sizes, and unsigned bytes.

The magic number is two zero bytes, 8 for unsigned bytes, and the number of dimensions. It and the
sizes are big-endian 32-bit integers. Source: Y. LeCun's page of MNIST, "file formats".
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from metaopt.errors import UserError
from metaopt.tasks.data.files import opened, unusable
from metaopt.tasks.data.images import Images
from metaopt.tasks.data.labels import checked

UNSIGNED_BYTES = 0x0800


def read_idx(path: Path, item: Sequence[int], most: int) -> Tensor:
    """Read the items of one IDX file, which says itself how many it has.

    At most one byte more than ``most`` items is read, whatever the file decompresses to.

    Args:
        path: the file, gzipped or not.
        item: the shape of an item: (height, width) of an image, () of a label.
        most: the largest number of items that is accepted.

    Returns:
        uint8 ``(n, *item)``.

    Raises:
        UserError: if the file is anything but 1 to ``most`` items of that shape.
    """
    header = struct.Struct(f">{2 + len(item)}I")
    magic = UNSIGNED_BYTES + 1 + len(item)
    with opened(path) as file:
        start = file.read(header.size)
        if len(start) < header.size:
            raise unusable(f"an IDX header of {header.size} bytes", f"{len(start)} bytes", path)
        found, count, *shape = header.unpack(start)
        if found != magic:
            raise unusable(f"the magic number {magic}", str(found), path)
        if shape != list(item):
            raise unusable(f"items of shape {tuple(item)}", str(tuple(shape)), path)
        if not 1 <= count <= most:
            raise unusable(f"1 to {most} items", f"a header that says {count}", path)
        size = count * math.prod(item)
        content = bytearray(file.read(size + 1))
    if len(content) != size:
        amount = "more" if len(content) > size else f"only {len(content)}"
        raise unusable(f"{size} bytes after the header for {count} items", amount, path)
    return torch.frombuffer(content, dtype=torch.uint8).reshape(count, *item)


def read_idx_pair(
    files: Sequence[Path], shape: tuple[int, int, int], classes: int, most: int
) -> Images:
    """Read images from one file and their labels from another.

    Args:
        files: the file of the images, then that of the labels.
        shape: channels, height and width of an image.
        classes: the number of classes; labels are 0 ... ``classes`` - 1.
        most: the largest number of images that is accepted.

    Raises:
        UserError: if a file is damaged, or the two do not fit each other.
    """
    of_images, of_labels = files
    pixels = read_idx(of_images, shape[1:], most).reshape(-1, *shape)
    labels = read_idx(of_labels, (), most).to(torch.int64)
    if len(pixels) != len(labels):
        raise UserError(
            f"expected one label an image, got {len(labels)} in {str(of_labels)!r} for "
            f"{len(pixels)} in {str(of_images)!r}: take both files from one source"
        )
    return Images(pixels, checked(labels, classes, of_labels))
