"""Data sets: known bytes come out as they are, and where their files are looked for."""

from __future__ import annotations

import gzip
import re

import pytest
import torch
from data_cases import (
    RECORD,
    assert_is,
    complaint,
    make_dataset,
)

from metaopt.tasks.data import DATASETS, load, standardized
from metaopt.tasks.data.idx import read_idx

IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = DATASETS["mnist"].files
SUBFOLDER = DATASETS["cifar10"].subfolder
TWICE = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3, 10, 20, 30, 40, 50, 255])


@pytest.mark.parametrize("name", ["plain", "a.gz", "zipped with another name"])
def test_known_idx_bytes(tmp_path, name):
    zipped = name != "plain"
    (tmp_path / name).write_bytes(gzip.compress(TWICE) if zipped else TWICE)
    read = read_idx(tmp_path / name, (1, 3), most=2)
    assert read.tolist() == [[[10, 20, 30]], [[40, 50, 255]]]
    assert read.dtype == torch.uint8


def test_known_cifar_bytes(tmp_path):
    """Red, then green, then blue; each row by row; the label first."""
    make_dataset(tmp_path, "cifar10", train=5, test=1)
    record = bytearray(RECORD)
    record[0], record[1], record[2], record[1 + 32], record[1 + 1024], record[-1] = 7, 1, 2, 3, 4, 5
    (tmp_path / "test_batch.bin").write_bytes(record)
    pixels, labels = load("cifar10", tmp_path).test
    assert labels.tolist() == [7]
    found = {tuple(at): int(pixels[tuple(at)]) for at in pixels.nonzero().tolist()}
    assert found == {
        (0, 0, 0, 0): 1,
        (0, 0, 0, 1): 2,
        (0, 0, 1, 0): 3,
        (0, 1, 0, 0): 4,
        (0, 2, 31, 31): 5,
    }


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("name", DATASETS)
def test_what_is_written_is_read_back(tmp_path, name, gzipped):
    make_dataset(tmp_path / "x", name, train=23, test=11, seed=3, gzipped=gzipped)
    assert_is(load(name, tmp_path / "x"), name, 23, 11, seed=3)
    assert_is(load(name, str(tmp_path / "x")), name, 23, 11, seed=3)


@pytest.mark.parametrize("name", DATASETS)
def test_the_tiny_images_can_be_learned(tmp_path, name):
    """The mean image of each class tells the classes of the test images."""
    train, test = load(name, make_dataset(tmp_path, name))[1:]
    x, x_test = (standardized(part).flatten(1) for part in (train, test))
    means = torch.stack([x[train.labels == c].mean(dim=0) for c in range(10)])
    right = torch.cdist(x_test, means).argmin(dim=1) == test.labels
    assert right.float().mean() > 0.95
    assert test.labels.bincount().tolist() == [10] * 10


def test_the_real_sizes_are_allowed_and_no_more():
    sizes = {name: (d.shape, d.train.images, d.test.images) for name, d in DATASETS.items()}
    assert sizes == {
        "mnist": ((1, 28, 28), 60000, 10000),
        "fashion-mnist": ((1, 28, 28), 60000, 10000),
        "cifar10": ((3, 32, 32), 50000, 10000),
    }
    for description in DATASETS.values():
        brought = [file for source in description.downloads for file in source.files]
        assert sorted(brought) == sorted(description.files)
        for source in description.downloads:
            assert re.fullmatch("[0-9a-f]{64}", source.sha256)


# Where the files are.


def test_the_variable_names_the_folder_above(tmp_path, monkeypatch):
    make_dataset(tmp_path / "fashion-mnist", "fashion-mnist", train=20, test=10)
    monkeypatch.setenv("METAOPT_DATA", str(tmp_path))
    assert_is(load("fashion-mnist"), "fashion-mnist", 20, 10)


def test_a_named_folder_goes_before_the_variable(tmp_path, monkeypatch):
    make_dataset(tmp_path / "mnist", "mnist", train=20, test=10)
    make_dataset(tmp_path / "mine", "mnist", train=30, test=10, seed=1)
    monkeypatch.setenv("METAOPT_DATA", str(tmp_path))
    assert_is(load("mnist", tmp_path / "mine"), "mnist", 30, 10, seed=1)


def test_cifar_may_lie_in_the_folder_of_its_archive(tmp_path):
    make_dataset(tmp_path / SUBFOLDER, "cifar10", train=20, test=10)
    for folder in (tmp_path, tmp_path / SUBFOLDER):
        assert_is(load("cifar10", folder), "cifar10", 20, 10)


def test_no_folder_at_all(monkeypatch):
    assert "METAOPT_DATA" in complaint(load, "mnist")
    monkeypatch.setenv("METAOPT_DATA", "")
    assert "METAOPT_DATA" in complaint(load, "mnist")


def test_an_unknown_name(tmp_path):
    message = complaint(load, "imagenet", tmp_path)
    assert message.startswith(f"expected a data set of {', '.join(DATASETS)}, got 'imagenet'")


@pytest.mark.parametrize(
    ("name", "file"), [(name, file) for name, d in DATASETS.items() for file in d.files]
)
def test_a_missing_file_is_named_alone(tmp_path, name, file):
    make_dataset(tmp_path, name, train=20, test=10)
    (tmp_path / file).unlink()
    (tmp_path / file).mkdir()  # a folder of that name is no file
    message = complaint(load, name, tmp_path)
    assert message.startswith(f"expected the files of {name} in {str(tmp_path)!r}, got none named")
    assert [other for other in DATASETS[name].files if other in message] == [file]
