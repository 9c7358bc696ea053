"""Pixels as numbers, minibatches, a validation split."""

from __future__ import annotations

import pytest
import torch
from data_cases import (
    complaint,
    generator,
)

from metaopt.tasks.data import DATASETS, Images, batches, split, standardized

IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = DATASETS["mnist"].files
SUBFOLDER = DATASETS["cifar10"].subfolder
TWICE = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3, 10, 20, 30, 40, 50, 255])


def numbered(count: int) -> Images:
    """Images that are all different: pixel 0 and the label are the image's number."""
    pixels = torch.arange(count, dtype=torch.uint8).reshape(-1, 1, 1, 1).repeat(1, 2, 3, 3)
    return Images(pixels, torch.arange(count))


def test_pixels_are_scaled_and_normalised_by_channel():
    pixels = torch.tensor([[0, 255], [51, 102]], dtype=torch.uint8).reshape(1, 2, 1, 2)
    images = Images(pixels, torch.tensor([0]))
    before = pixels.clone()
    for given in (images, pixels):
        scaled = standardized(given)
        assert scaled.dtype == torch.float32
        torch.testing.assert_close(scaled, torch.tensor([[0, 1], [0.2, 0.4]]).reshape(1, 2, 1, 2))
    one = standardized(images, mean=0.5, std=0.25)
    torch.testing.assert_close(one.flatten(), torch.tensor([-2, 2, -1.2, -0.4]))
    each = standardized(images, mean=(1.0, 0.2), std=[0.5, 0.1])
    torch.testing.assert_close(each.flatten(), torch.tensor([-2.0, 0.0, 0.0, 2.0]))
    assert torch.equal(pixels, before)


@pytest.mark.parametrize(
    "options",
    [{"mean": (0.1, 0.2, 0.3)}, {"std": (1.0, 0.0)}, {"std": -1.0}, {"mean": float("nan")}],
    ids=str,
)
def test_moments_that_do_not_fit(options):
    complaint(standardized, numbered(4), **options)


def test_pixels_that_were_scaled_already():
    complaint(standardized, standardized(numbered(4)))
    complaint(standardized, torch.zeros(3, 3, dtype=torch.uint8))


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("count", "size"), [(10, 3), (10, 5), (10, 10), (10, 1)])
def test_an_epoch_is_every_pair_once(count, size, drop_last):
    images = numbered(count)
    drawn = list(batches(images, size, generator(), drop_last=drop_last))
    sizes = [len(y) for _, y in drawn]
    whole, rest = divmod(count, size)
    assert sizes == [size] * whole + [rest] * (rest > 0 and not drop_last)
    for x, y in drawn:
        assert torch.equal(x, images.pixels[y])
    seen = torch.cat([y for _, y in drawn])
    assert len(seen.unique()) == len(seen) == sum(sizes)


def test_batches_are_those_of_the_generator():
    x = torch.arange(200)

    def order(g: torch.Generator) -> list[int]:
        return torch.cat([y for _, y in batches((x, x), 32, g)]).tolist()

    one = generator(1)
    first, second = order(one), order(one)
    assert first == order(generator(1))
    assert len({tuple(o) for o in (first, second, order(generator(2)), x.tolist())}) == 4
    torch.manual_seed(0)
    state = torch.get_rng_state()
    order(one)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_order_is_drawn_at_the_call():
    """So two epochs that are read side by side are those that are read one after the other."""
    x, g = torch.arange(50), generator(3)
    late, _ = batches((x, x), 50, g), batches((x, x), 50, g)
    assert torch.equal(next(late)[1], next(batches((x, x), 50, generator(3)))[1])


@pytest.mark.parametrize(
    ("x", "y", "size", "drop_last"),
    [(5, 4, 2, False), (5, 5, 0, False), (5, 5, -1, False), (0, 0, 1, False), (5, 5, 6, True)],
)
def test_batches_that_cannot_be(x, y, size, drop_last):
    pairs = torch.zeros(x), torch.zeros(y)
    complaint(batches, pairs, size, generator(), drop_last=drop_last)


@pytest.mark.parametrize(("held_out", "count"), [(3, 3), (0.3, 3), (0.25, 2), (1, 1), (9, 9)])
def test_a_split_shares_out_all_images(held_out, count):
    images = numbered(10)
    train, validation = split(images, held_out, generator())
    assert (len(train.labels), len(validation.labels)) == (10 - count, count)
    both = torch.cat([train.labels, validation.labels])
    assert sorted(both.tolist()) == list(range(10))
    for part in (train, validation):
        assert torch.equal(part.pixels[:, 0, 0, 0].long(), part.labels)


def test_a_split_is_that_of_the_generator():
    images = numbered(100)
    first, again, other = (split(images, 20, generator(s))[1].labels.tolist() for s in (1, 1, 2))
    assert first == again != other
    assert first != list(range(20))


@pytest.mark.parametrize("held_out", [0, 10, 11, -1, 0.0, 1.0, 0.01, 0.99, 1.5, float("nan")])
def test_a_split_with_an_empty_part(held_out):
    complaint(split, numbered(10), held_out, generator())
