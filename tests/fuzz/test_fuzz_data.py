"""Files of images: the images that they hold, or one line; never more memory than they may take."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from pathlib import Path

import pytest
import torch
from fuzz_cases import CAGE, attempt, fuzzed, mutated
from hypothesis import example, given
from hypothesis import strategies as st

from metaopt import UserError
from metaopt.tasks.data import DATASETS, Images, batches, load, split, standardized
from metaopt.tasks.data.cifar import read_cifar, read_records
from metaopt.tasks.data.idx import read_idx, read_idx_pair

ITEM, MOST = (2, 3), 5
PIXELS = struct.pack(">4I", 0x0803, 2, *ITEM) + bytes(range(12))
LABELS = struct.pack(">2I", 0x0801, 2) + bytes([0, 9])
RECORDS = bytes([3]) + bytes(12) + bytes([4]) + bytes(12)
sizes = st.integers(0, 6) | st.sampled_from((2**31, 2**32 - 1, 784))


@pytest.fixture(autouse=True, scope="module")
def _elsewhere(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("data"))
        Path("x").write_bytes(gzip.compress(PIXELS))
        read_idx(Path("x"), ITEM, MOST)  # what is imported late
        yield


def read(content: bytes, reader, *arguments):
    """What it gives, or None; the file stays."""
    Path("x").write_bytes(content)
    given = attempt(lambda: reader(Path("x"), *arguments), code=False).value
    assert Path("x").read_bytes() == content
    assert [path.name for path in Path.cwd().iterdir()] == ["x"]
    return given


def headers(dimensions: int) -> st.SearchStrategy[bytes]:
    magic = st.sampled_from((0x0801, 0x0803, 0x0802, 0x0D03, 0, 2**32 - 1, 0x01080000))
    return st.tuples(magic, st.lists(sizes, min_size=dimensions, max_size=dimensions)).map(
        lambda pair: struct.pack(f">{1 + dimensions}I", pair[0], *pair[1])
    )


def packed(content: bytes, level: int = 9) -> bytes:
    return gzip.compress(content, level, mtime=0)


def squeezed(whole: bytes) -> st.SearchStrategy[bytes]:
    """Damaged, then zipped; or zipped, then damaged; or neither zipped."""
    damaged = mutated(whole) | st.binary(max_size=40)
    zipped = st.integers(0, 9).map(lambda level: packed(whole, level))
    return st.one_of(damaged, damaged.map(packed), zipped.flatmap(mutated))


@fuzzed(150, 2000)
@given(squeezed(PIXELS) | st.builds(bytes.__add__, headers(3), st.binary(max_size=30)))
@example(PIXELS + gzip.compress(PIXELS))
@example(struct.pack(">4I", 0x0803, 2**32 - 1, 2**32 - 1, 2**32 - 1))
@example(struct.pack(">4i", 0x0803, -1, *ITEM) + bytes(12))
@example(gzip.compress(b""))
@example(b"\x1f\x8b")
def test_idx(content: bytes) -> None:
    images = read(content, read_idx, ITEM, MOST)
    if images is not None:
        assert images.dtype == torch.uint8
        assert tuple(images.shape[1:]) == ITEM
        assert 1 <= len(images) <= MOST


@fuzzed(70, 1000)
@given(squeezed(LABELS) | st.builds(bytes.__add__, headers(1), st.binary(max_size=9)))
def test_labels(content: bytes) -> None:
    labels = read(content, read_idx, (), MOST)
    assert labels is None or (labels.dim() == 1 and 1 <= len(labels) <= MOST)


@fuzzed(70, 1000)
@given(squeezed(RECORDS))
@example(bytes(13 * MOST + 1))
@example(bytes(13 * MOST))
def test_cifar(content: bytes) -> None:
    records = read(content, read_records, 13, MOST)
    assert records is None or (records.shape[1] == 13 and 1 <= len(records) <= MOST)
    images = read(content, lambda path: read_cifar([path], (3, 2, 2), 10, MOST))
    assert images is None or (images.labels < 10).all()


@fuzzed(60, 500)
@given(squeezed(PIXELS), squeezed(LABELS))
def test_a_pair(pixels: bytes, labels: bytes) -> None:
    Path("../pixels").write_bytes(pixels)
    images = read(
        labels, lambda path: read_idx_pair([Path("../pixels"), path], (1, *ITEM), 10, MOST)
    )
    assert images is None or len(images.pixels) == len(images.labels)


def bomb(start: bytes, layers: int = 1) -> bytes:
    """A few kilobytes that unpack to gigabytes of zeros."""
    zeros = gzip.compress(bytes(2**22), mtime=0)
    content = gzip.compress(start, mtime=0) + 600 * zeros
    for _ in range(layers - 1):
        content = gzip.compress(content, mtime=0)
    return content


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("start", [b"", PIXELS[:16], struct.pack(">4I", 0x0803, MOST, *ITEM)])
def test_a_bomb(start: bytes, layers: int) -> None:
    content = bomb(start, layers)
    Path("x").write_bytes(content)
    for reader, arguments in ((read_idx, (ITEM, MOST)), (read_records, (13, MOST))):
        tracemalloc.start()
        with CAGE.watch(code=False), pytest.raises(UserError):
            reader(Path("x"), *arguments)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**20


@pytest.mark.parametrize("place", ["gone", "a\0b", "n" * 5000, "/dev/null", "x/y", "\ud800", ""])
@pytest.mark.parametrize("name", DATASETS)
def test_a_folder(name: str, place: str) -> None:
    with CAGE.watch(code=False), pytest.raises(UserError):
        load(name, place)


def test_a_data_set_of_another_name() -> None:
    for name in ("", "../mnist", "MNIST", "a\0b", "x" * 5000):
        with CAGE.watch(code=False), pytest.raises(UserError):
            load(name, ".")


numbers = st.floats() | st.integers(-3, 9) | st.sampled_from((0.0, 1e308, 10**30))


@fuzzed(60, 500)
@given(st.integers(0, 4), numbers, st.integers(-3, 9), st.booleans(), numbers | st.lists(numbers))
@example(0, 0.5, 1, True, [])
@example(3, float("nan"), 1, False, [float("nan")] * 2)
@example(3, 10**30, 10**30, False, 10**30)
def test_what_is_done_with_images(total, held_out, size, drop, number) -> None:
    pixels = torch.zeros(total, 2, 3, 3, dtype=torch.uint8)
    images = Images(pixels, torch.zeros(total, dtype=torch.int64))
    generator = torch.Generator().manual_seed(0)
    calls = (
        lambda: [len(part.labels) for part in split(images, held_out, generator)],
        lambda: [len(y) for _, y in batches(images, size, generator, drop)],
        lambda: standardized(images, number).shape,
        lambda: standardized(images, None, number).shape,
    )
    for call in calls:
        attempt(call)
