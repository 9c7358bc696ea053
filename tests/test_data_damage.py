"""Damaged files of data sets: one line each, and never more memory than they may take."""

from __future__ import annotations

import gzip
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from data_cases import (
    CIFAR_DAMAGE,
    GZIP_DAMAGE,
    IMAGE_DAMAGE,
    LABEL_DAMAGE,
    RECORD,
    assert_is,
    complaint,
    header,
    make_dataset,
    write,
    write_idx,
)

from metaopt.errors import UserError
from metaopt.tasks.data import DATASETS, load
from metaopt.tasks.data.idx import read_idx

IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = DATASETS["mnist"].files
SUBFOLDER = DATASETS["cifar10"].subfolder
TWICE = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3, 10, 20, 30, 40, 50, 255])


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("kind", IMAGE_DAMAGE)
def test_a_damaged_file_of_images(tmp_path, kind, zipped):
    damage, words = IMAGE_DAMAGE[kind]
    make_dataset(tmp_path, "mnist", train=20, test=10)
    whole = (tmp_path / IMAGES).read_bytes()
    (tmp_path / IMAGES).unlink()
    path = tmp_path / (f"{IMAGES}.gz" if zipped else IMAGES)
    write(path, damage(whole))
    message = complaint(load, "mnist", tmp_path)
    assert re.search(words, message)
    assert str(path) in message
    write(path, whole)
    assert_is(load("mnist", tmp_path), "mnist", 20, 10)


@pytest.mark.parametrize(("labels", "words"), LABEL_DAMAGE)
def test_a_damaged_file_of_labels(tmp_path, labels, words):
    make_dataset(tmp_path, "fashion-mnist", train=20, test=10)
    write_idx(tmp_path / TEST_LABELS, labels)
    message = complaint(load, "fashion-mnist", tmp_path)
    assert words in message
    assert str(tmp_path / TEST_LABELS) in message


@pytest.mark.parametrize("kind", GZIP_DAMAGE)
@pytest.mark.parametrize(("name", "file"), [("mnist", TEST_IMAGES), ("cifar10", "test_batch.bin")])
def test_a_damaged_gzip(tmp_path, name, file, kind):
    make_dataset(tmp_path, name, train=20, test=10, gzipped=True)
    path = tmp_path / f"{file}.gz"
    path.write_bytes(GZIP_DAMAGE[kind](path.read_bytes()))
    message = complaint(load, name, tmp_path)
    assert "a whole gzip file" in message
    assert str(path) in message


def test_one_changed_byte_or_a_cut_anywhere_in_a_gzip_changes_no_pixel_unnoticed(tmp_path):
    path = tmp_path / "x.gz"
    write_idx(path, np.arange(40, dtype=np.uint8).reshape(10, 2, 2))
    whole, wanted = path.read_bytes(), read_idx(path, (2, 2), most=10)
    changed = [whole[:at] + bytes([whole[at] ^ 0x15]) + whole[at + 1 :] for at in range(len(whole))]
    refused = 0
    for content in [*changed, *(whole[:cut] for cut in range(len(whole)))]:
        path.write_bytes(content)
        try:
            assert torch.equal(read_idx(path, (2, 2), most=10), wanted)
        except UserError:
            refused += 1
    assert refused >= 2 * len(whole) - 8  # time, level and system say nothing of the content


@pytest.mark.parametrize("kind", CIFAR_DAMAGE)
def test_a_damaged_cifar_file(tmp_path, kind):
    damage, words = CIFAR_DAMAGE[kind]
    make_dataset(tmp_path, "cifar10", train=20, test=10)
    path = tmp_path / "data_batch_3.bin"
    path.write_bytes(damage(path.read_bytes()))
    message = complaint(load, "cifar10", tmp_path)
    assert re.search(words, message)
    assert str(path) in message


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    make_dataset(tmp_path, "mnist", train=20, test=10)

    def refuse(self, *arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert "Permission denied" in complaint(load, "mnist", tmp_path)


@pytest.mark.parametrize(("name", "file"), [("mnist", TEST_IMAGES), ("cifar10", "test_batch.bin")])
def test_a_small_file_that_unpacks_to_gigabytes_takes_little_memory(tmp_path, name, file):
    """Four gigabytes of zeros in four megabytes, after a header that says 10 images."""
    make_dataset(tmp_path, name, train=20, test=10)
    (tmp_path / file).unlink()
    start = header(10) if name == "mnist" else b""
    zeros = gzip.compress(bytes(2**24), mtime=0)
    (tmp_path / f"{file}.gz").write_bytes(gzip.compress(start, mtime=0) + 256 * zeros)
    tracemalloc.start()
    message = complaint(load, name, tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "got more" in message
    assert peak < (2**20 if name == "mnist" else 4 * 10_000 * RECORD)
