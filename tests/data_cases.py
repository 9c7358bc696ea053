"""Tiny data sets in the formats of the real ones, with images that can be learned."""

from __future__ import annotations

import gzip
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from metaopt.errors import UserError
from metaopt.tasks.data import DATASETS, Dataset, Images

Bytes = NDArray[np.uint8]
RECORD = 1 + 3 * 32 * 32


def write(path: Path, content: bytes) -> None:
    """Gzipped if the name says so; equal content gives equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def idx_bytes(array: Bytes) -> bytes:
    """An IDX file of unsigned bytes, of any number of dimensions."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(path: Path, array: Bytes) -> None:
    write(path, idx_bytes(array))


def cifar_bytes(pixels: Bytes, labels: Bytes) -> bytes:
    """Records of a label and the pixels of one image, ``(n, 3, 32, 32)``."""
    return np.concatenate([labels[:, None], pixels.reshape(len(labels), -1)], axis=1).tobytes()


def blobs(shape: tuple[int, int, int], count: int, seed: int) -> tuple[Bytes, Bytes]:
    """(pixels, labels): a bright spot on a ring, at an angle that is the class's, plus noise.

    Classes are balanced; each colour channel has a brightness that is the class's too.
    """
    channels, height, width = shape
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % 10).astype(np.uint8)
    angle = labels * (2 * np.pi / 10) + rng.normal(0, 0.05, count)
    y = height / 2 + height / 3 * np.sin(angle)
    x = width / 2 + width / 3 * np.cos(angle)
    rows, columns = np.mgrid[:height, :width]
    squared = (rows - y[:, None, None]) ** 2 + (columns - x[:, None, None]) ** 2
    spot = np.exp(-squared / (2 * 2.5**2))[:, None]
    colour = 1 - 0.5 * ((labels[:, None] + np.arange(channels)) % 3 == 1)
    bright = 170 * colour[:, :, None, None] * spot
    noise = rng.normal(30, 15, (count, *shape))
    return np.clip(bright + noise, 0, 255).astype(np.uint8), labels


def make_dataset(
    folder: Path,
    name: str,
    train: int = 300,
    test: int = 100,
    seed: int = 0,
    gzipped: bool = False,
) -> Path:
    """Write the files of a small data set of that name into ``folder``, which is returned.

    ``metaopt.tasks.data.load(name, folder)`` reads them; nothing is learned from one part about the
    noise of the other. CIFAR-10 needs at least 5 training images, one a file.
    """
    description = DATASETS[name]
    ending = ".gz" if gzipped else ""
    for part, count, stream in ((description.train, train, 0), (description.test, test, 1)):
        pixels, labels = blobs(description.shape, count, 2 * seed + stream)
        if name == "cifar10":
            indices = np.array_split(np.arange(count), len(part.files))
            for file, index in zip(part.files, indices, strict=True):
                write(folder / f"{file}{ending}", cifar_bytes(pixels[index], labels[index]))
        else:
            of_images, of_labels = part.files
            write_idx(folder / f"{of_images}{ending}", pixels[:, 0])
            write_idx(folder / f"{of_labels}{ending}", labels)
    return folder


# Damage to the content of a good file of 20 images, and a part of the complaint about it.

Damage = Callable[[bytes], bytes]


def header(count: int = 20, rows: int = 28, columns: int = 28, magic: int = 2051) -> bytes:
    """Of an IDX file of images."""
    return struct.pack(">4I", magic, count, rows, columns)


IMAGE_DAMAGE: dict[str, tuple[Damage, str]] = {
    "empty": (lambda c: b"", "header of 16 bytes, got 0 bytes"),
    "a cut header": (lambda c: c[:15], "header of 16 bytes, got 15 bytes"),
    "labels": (lambda c: idx_bytes(np.zeros(20, np.uint8)), "magic number 2051, got 2049"),
    "another type": (lambda c: header(magic=0x0D03) + c[16:], "magic number 2051, got 3331"),
    "another size": (lambda c: header(rows=32) + c[16:], r"\(28, 28\), got \(32, 28\)"),
    "transposed": (lambda c: header(rows=14, columns=56) + c[16:], r"got \(14, 56\)"),
    "truncated": (lambda c: c[:-1], "15680 bytes .* got only 15679"),
    "a header alone": (lambda c: c[:16], "got only 0"),
    "too long": (lambda c: c + b"\0", "15680 bytes .* got more"),
    "a greater count": (lambda c: header(21) + c[16:], "16464 bytes .* got only 15680"),
    "a smaller count": (lambda c: header(19) + c[16:], "14896 bytes .* got more"),
    "no image": (lambda c: header(0), "1 to 60000 items, got a header that says 0"),
    "more than all": (lambda c: header(60001) + c[16:], "a header that says 60001"),
    "a huge count": (lambda c: header(2**32 - 1) + c[16:], "a header that says 4294967295"),
    "one image less": (lambda c: header(19) + c[16:-784], "one label an image, got 20"),
    "text": (lambda c: b"<!DOCTYPE html><html>", "magic number 2051"),
    "pickle": (lambda c: b"cos\nmkdir\n(S'/'\ntR.....", "magic number 2051"),
}

LABEL_DAMAGE: list[tuple[Bytes, str]] = [  # in place of ten good labels
    (np.full(10, 10, np.uint8), "labels from 0 to 9, got 10 for image 0"),
    (np.arange(1, 11, dtype=np.uint8), "got 10 for image 9"),
    (np.full(10, 255, np.uint8), "got 255 for image 0"),
    (np.zeros(9, np.uint8), "one label an image, got 9"),
    (np.zeros((10, 1), np.uint8), "magic number 2049, got 2050"),
]

GZIP_DAMAGE: dict[str, Damage] = {
    "truncated": lambda z: z[:-9],
    "without checksum": lambda z: z[:-8],
    "a wrong checksum": lambda z: z[:-8] + bytes([z[-8] ^ 1]) + z[-7:],
    "a wrong size": lambda z: z[:-1] + b"\1",
    "only its magic number": lambda z: z[:2],
    "a cut header": lambda z: z[:9],
    "another method": lambda z: z[:2] + b"\1" + z[3:],
    "an impossible block": lambda z: z[:10] + b"\x07" + z[11:],
    "zeros": lambda z: z[:10] + bytes(len(z) - 10),
    "something after it": lambda z: z + b"hello",
}

CIFAR_DAMAGE: dict[str, tuple[Damage, str]] = {
    "empty": (lambda c: b"", "records of 3073 bytes, got 0 bytes"),
    "truncated": (lambda c: c[:-1], "got 12291 bytes"),
    "too long": (lambda c: c + b"\0", "got 12293 bytes"),
    "more than all": (lambda c: bytes(10001 * RECORD), "1 to 10000 records .* got more"),
    "a label too great": (lambda c: c[:RECORD] + b"\x0a" + c[RECORD + 1 :], "got 10 for image 1"),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def complaint(call: Callable[..., object], *arguments: object, **options: object) -> str:
    """The one line, in three parts, of a call that must fail."""
    with pytest.raises(UserError) as error:
        call(*arguments, **options)
    message = str(error.value)
    assert re.fullmatch(r"expected .*, got .*: .*", message), message
    return message


def expected_images(name: str, count: int, seed: int) -> Images:
    pixels, labels = blobs(DATASETS[name].shape, count, seed)
    return Images(torch.from_numpy(pixels), torch.from_numpy(labels).long())


def assert_is(data: Dataset, name: str, train: int, test: int, seed: int = 0) -> None:
    """Whether ``make_dataset`` wrote it."""
    assert data.name == name
    for part, count, stream in ((data.train, train, 0), (data.test, test, 1)):
        wanted = expected_images(name, count, 2 * seed + stream)
        assert (part.pixels.dtype, part.labels.dtype) == (torch.uint8, torch.int64)
        assert torch.equal(part.pixels, wanted.pixels)
        assert torch.equal(part.labels, wanted.labels)


# Known bytes and round trips.
