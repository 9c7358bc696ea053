"""Whether two states are the same."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def assert_same(one: Any, other: Any) -> None:
    """All entries of two states are the same, bit for bit and in dtype."""
    if isinstance(one, Mapping):
        assert isinstance(other, Mapping)
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
        return
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)  # and the dtype
    elif isinstance(one, list | tuple):
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    else:
        assert one == other
