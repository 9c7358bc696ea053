"""Downloads of data sets: the fake takes files from a folder; the rest is pooch."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pooch
import pytest
import torch
from data_cases import (
    assert_is,
    complaint,
    expected_images,
    make_dataset,
    write,
)

from metaopt.tasks.data import DATASETS, load

IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = DATASETS["mnist"].files
SUBFOLDER = DATASETS["cifar10"].subfolder
TWICE = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3, 10, 20, 30, 40, 50, 255])


@pytest.fixture
def public(tmp_path, monkeypatch) -> Path:
    """A folder with what the table's addresses give, and the table with its checksums."""
    folder = tmp_path / "public"
    for name in ("mnist", "cifar10"):
        made = make_dataset(tmp_path / f"made {name}", name, 20, 10, gzipped=name == "mnist")
        if name == "cifar10":
            folder.mkdir(exist_ok=True)
            with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as archive:
                archive.add(made, SUBFOLDER)
        else:
            shutil.copytree(made, folder)
        downloads = tuple(
            source._replace(sha256=sha256(folder / source.url.rsplit("/", 1)[1]))
            for source in DATASETS[name].downloads
        )
        monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], downloads=downloads))
    return folder


@pytest.fixture
def fetched(public, monkeypatch) -> list[str]:
    """Addresses that were asked for, in order."""
    asked: list[str] = []

    def copy(url, output_file, pooch):
        asked.append(url)
        shutil.copy(public / url.rsplit("/", 1)[1], output_file)

    retrieve = pooch.retrieve
    monkeypatch.setattr(pooch, "retrieve", lambda *a, **k: retrieve(*a, **k, downloader=copy))
    return asked


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_download_comes_once(tmp_path, fetched, name):
    folder = tmp_path / "new" / name
    for _ in range(2):
        assert_is(load(name, folder, download=True), name, 20, 10)
        assert fetched == [source.url for source in DATASETS[name].downloads]
    assert_is(load(name, folder), name, 20, 10)


def test_only_what_is_missing_is_fetched_and_nothing_is_replaced(tmp_path, fetched):
    """Files of the user's own need not have the checksums of the table."""
    make_dataset(tmp_path / "mine", "mnist", train=20, test=7, seed=9)
    for file in (IMAGES, LABELS):
        (tmp_path / "mine" / file).unlink()
    data = load("mnist", tmp_path / "mine", download=True)
    assert fetched == [source.url for source in DATASETS["mnist"].downloads[:2]]
    assert torch.equal(data.train.labels, expected_images("mnist", 20, 0).labels)
    assert torch.equal(data.test.labels, expected_images("mnist", 7, 19).labels)


def test_an_archive_is_fetched_for_one_missing_file(tmp_path, fetched):
    folder = make_dataset(tmp_path / "mine", "cifar10", train=20, test=10)
    (folder / "data_batch_2.bin").unlink()
    assert_is(load("cifar10", folder, download=True), "cifar10", 20, 10)
    assert fetched == [DATASETS["cifar10"].downloads[0].url]


def test_an_archive_beside_the_data_is_unpacked_without_the_network(tmp_path, public, fetched):
    (tmp_path / "mine").mkdir()
    shutil.copy(public / "cifar-10-binary.tar.gz", tmp_path / "mine")
    assert_is(load("cifar10", tmp_path / "mine", download=True), "cifar10", 20, 10)
    assert fetched == []


@pytest.mark.parametrize("variable", [False, True])
def test_where_a_download_goes_without_a_folder(tmp_path, fetched, monkeypatch, variable):
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    place = tmp_path / "cache" / "metaopt" / "mnist"
    if variable:
        monkeypatch.setenv("METAOPT_DATA", str(tmp_path / "above"))
        place = tmp_path / "above" / "mnist"
    assert_is(load("mnist", download=True), "mnist", 20, 10)
    assert sorted(path.name for path in place.iterdir()) == sorted(
        f"{file}.gz" for file in DATASETS["mnist"].files
    )


def test_another_file_than_was_meant_is_refused_and_not_kept(tmp_path, public, fetched):
    write(public / f"{LABELS}.gz", b"something else")
    message = complaint(load, "mnist", tmp_path / "new", download=True)
    assert LABELS in message
    assert "does not match the known hash" in message
    assert not (tmp_path / "new" / f"{LABELS}.gz").exists()


@pytest.mark.parametrize("failure", ["no network", "no folder"])
def test_a_download_that_fails(tmp_path, fetched, monkeypatch, failure):
    folder = tmp_path / "new"
    if failure == "no network":

        def fail(*arguments, **options):
            raise ConnectionError("Max retries exceeded\nwith url")

        monkeypatch.setattr(pooch, "retrieve", fail)
    else:
        folder.write_text("this is a file")
    message = complaint(load, "mnist", folder, download=True)
    assert ("ConnectionError" if failure == "no network" else str(folder)) in message


def test_an_archive_is_not_believed(tmp_path, public, fetched, monkeypatch):
    """Only the files it is fetched for come out of it, and only into the folder."""
    with tarfile.open(public / "cifar-10-binary.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "made cifar10", SUBFOLDER)
        for name in ("../outside", f"{SUBFOLDER}/other"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    (source,) = DATASETS["cifar10"].downloads
    source = source._replace(sha256=sha256(public / "cifar-10-binary.tar.gz"))
    monkeypatch.setitem(DATASETS, "cifar10", replace(DATASETS["cifar10"], downloads=(source,)))
    load("cifar10", tmp_path / "new", download=True)
    names = sorted(os.listdir(tmp_path / "new" / SUBFOLDER))
    assert names == sorted(DATASETS["cifar10"].files)
    assert not (tmp_path / "outside").exists()


def test_pooch_is_needed_only_for_a_download(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    make_dataset(tmp_path / "mine", "mnist", train=20, test=10)
    assert_is(load("mnist", tmp_path / "mine", download=True), "mnist", 20, 10)
    for folder in (tmp_path / "new", None):
        assert "no package pooch: pip install" in complaint(load, "mnist", folder, download=True)
