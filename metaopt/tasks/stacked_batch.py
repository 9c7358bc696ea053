"""Batches of several copies of a task, with their tensors stacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from metaopt.symmetry.nested import mapped, tensors_in


@final
class StackedBatch:
    """The batches of several copies, with their tensors stacked.

    Attributes:
        leaves: the tensors of a batch in order, ``(B, ...)`` each.
        uneven: why they cannot be stacked; "" if they can.
    """

    def __init__(self, batches: list[Any], leaves: list[Tensor], uneven: str) -> None:
        self._batches, self.leaves, self.uneven = batches, leaves, uneven

    @classmethod
    def of(cls, batches: list[Any]) -> StackedBatch:
        """Stack the batches of the copies of a task.

        Args:
            batches: one for each copy.
        """
        if all(type(batch) is tuple for batch in batches):  # the most common, at less expense
            columns = list(zip(*batches, strict=False))
            if len({len(batch) for batch in batches}) == 1 and all(map(_alike, columns)):
                return cls(batches, [torch.stack(own) for own in columns], "")
        shapes = [_structure(batch) for batch in batches]
        if any(own != shapes[0] for own in shapes):
            return cls(
                batches, [], "the batches of its copies differ in shape or in what they hold"
            )
        flat = zip(*(tensors_in(batch) for batch in batches), strict=True)
        return cls(batches, [torch.stack(own) for own in flat], "")

    def to(self, device: torch.device) -> StackedBatch:
        """Return the same on a device."""
        if all(leaf.device == device for leaf in self.leaves) and not self.uneven:
            return self
        batches = [moved(batch, device) for batch in self._batches]
        return StackedBatch(batches, [leaf.to(device) for leaf in self.leaves], self.uneven)

    def rebuilt(self, leaves: Sequence[Tensor]) -> Any:
        """Return a batch with other tensors in place of its own.

        Args:
            leaves: in order; for a copy whose batch cannot be stacked, the batch itself alone.
        """
        if self.uneven:
            return leaves[0]
        left = iter(leaves)
        return mapped(lambda _: next(left), self._batches[0])

    def of_copy(self, index: int) -> list[Any]:
        """Return what :meth:`rebuilt` takes for one copy.

        Args:
            index: of the copy.
        """
        return [self._batches[index]] if self.uneven else [leaf[index] for leaf in self.leaves]


def moved(batch: Any, device: torch.device) -> Any:
    """Return a batch with its tensors on a device.

    Args:
        batch: a tensor, or tuples, lists and dictionaries of tensors.
        device: where they go.
    """
    if all(leaf.device == device for leaf in tensors_in(batch)):
        return batch
    return mapped(lambda tensor: tensor.to(device), batch)


def _alike(column: Sequence[Any]) -> bool:
    first = column[0]
    return isinstance(first, Tensor) and all(
        isinstance(own, Tensor) and own.shape == first.shape and own.dtype == first.dtype
        for own in column
    )


PLAIN = (bool, int, float, str, bytes, type(None))


def _structure(value: Any) -> object:
    """What two batches must have in common to be stacked; what cannot be compared differs."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    if isinstance(value, Mapping):
        return tuple((name, _structure(item)) for name, item in value.items())
    if isinstance(value, tuple | list):
        return type(value), tuple(_structure(item) for item in value)
    return value if isinstance(value, PLAIN) else object()
