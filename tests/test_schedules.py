"""Schedules of every kind fire when they say, or are refused when the optimizer is built."""

import itertools
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from metaopt import UserError
from metaopt.optim.schedule import as_predicate

AT_ONE_AND_THREE = {
    "list": [1, 3],
    "tuple": (3, 1, 3),
    "set": {1, 3},
    "range": range(1, 5, 2),
    "backwards": range(3, 0, -2),
    "keys": {1: "a", 3: "b"}.keys(),
    "array": np.array([1, 3]),
    "array of floats": np.array([1.0, 3.0]),
    "small integers": np.array([1, 3], dtype=np.uint8),
    "tensor": torch.tensor([1, 3]),
    "tensor of floats": torch.tensor([1.0, 3.0], requires_grad=True),
    "numbers of numpy and torch": [np.int32(1), torch.tensor(3)],
    "whole floats": [1.0, 3.0],
    "fractions": [Fraction(1), Decimal(3)],
    "function": lambda step: step in (1, 3),
    "method": frozenset((1, 3)).__contains__,
}


@pytest.mark.parametrize("schedule", AT_ONE_AND_THREE.values(), ids=AT_ONE_AND_THREE)
def test_steps_of_any_kind_are_the_steps(schedule):
    fires = as_predicate(schedule)
    assert [step for step in range(9) if fires(step)] == [1, 3]


@pytest.mark.parametrize(
    "make",
    [
        lambda: (step for step in (1, 3)), lambda: map(int, "13"), lambda: iter([1, 3]),
        lambda: itertools.takewhile(lambda step: step < 4, itertools.count(1, 2)),
    ],
    ids=["generator", "map", "iterator", "a part of an endless one"],
)  # fmt: skip
def test_an_iterator_is_read_at_once(make):
    fires = as_predicate(make())
    for _ in range(2):
        assert [step for step in range(9) if fires(step)] == [1, 3]


@pytest.mark.parametrize("every", [3, 3.0, np.int64(3), np.array(3), torch.tensor(3)])
def test_a_whole_number_is_every_so_many_steps(every):
    fires = as_predicate(every)
    assert [step for step in range(9) if fires(step)] == [3, 6]


@pytest.mark.parametrize("schedule", [None, [], (), range(0), iter(()), np.array([]), {}.keys()])
def test_no_steps_are_never(schedule):
    assert not any(map(as_predicate(schedule), range(9)))


def test_a_long_range_is_not_read():
    fires = as_predicate(range(0, 10**15, 100))
    assert [step for step in range(201) if fires(step)] == [0, 100, 200]


NO_SCHEDULE = {
    "half": 2.5,
    "halves": [2.5, 7.5],
    "nan": float("nan"),
    "a nan": [1, float("nan")],
    "infinity": float("inf"),
    "an infinity": [float("inf")],
    "text": "13",
    "bytes": b"13",
    "texts": ["1", "3"],
    "yes": True,
    "no": False,
    "a mask": [True, False],
    "a mask of numpy": np.array([True, False]),
    "a mask of torch": torch.tensor([True, False]),
    "negative": [1, -1],
    "all negative": range(-3, 0),
    "partly negative": range(5, -3, -1),
    "nothing": [None],
    "nested": np.array([[1, 2], [3, 4]]),
    "dict": {1: 2},
    "object": object(),
    "complex": [1j],
    "zero": 0,
    "below zero": -2,
    "a function of nothing": lambda: True,
    "a function of two": lambda step, epoch: True,
}


@pytest.mark.parametrize("schedule", NO_SCHEDULE.values(), ids=NO_SCHEDULE)
def test_anything_else_is_refused_in_one_short_line(schedule):
    with pytest.raises(UserError, match=r"^expected .* got .*: .*$") as error:
        as_predicate(schedule)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    "endless", [itertools.count(0, 100), itertools.repeat(3), itertools.cycle([1, 2])]
)
def test_an_iterator_without_end_is_refused_and_not_waited_for(endless):
    with pytest.raises(UserError, match="at most 1,000,000 steps, got more: give a function"):
        as_predicate(endless)
