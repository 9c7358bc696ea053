"""Passes over many tensors in place, in blocks that stay in a processor's cache.

An optimizer goes several times over its tensors. Where these are larger than the cache, each pass
waits for memory. Block by block, all but the first find their numbers in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

ENTRIES = 1 << 17
"""Of a block: a tensor of it in float32 is half a MB."""


class Block(NamedTuple):
    """Tensors, or flat parts of them, that all passes are made over before the next ones.

    Attributes:
        owners: of each part, the place of its tensor.
        parts: a list for each list of tensors that was given.
    """

    owners: list[int]
    parts: list[list[Tensor]]


def blocks(*lists: Sequence[Tensor]) -> Iterator[Block]:
    """Yield tensors in blocks of about ``ENTRIES`` entries; a large tensor is cut into views.

    Tensors of which one is not contiguous stay whole. Elsewhere than on a CPU there is one block.

    Args:
        lists: tensors of the same shapes, in the same order.
    """
    if not lists[0]:
        return
    if lists[0][0].device.type != "cpu":
        yield Block(list(range(len(lists[0]))), [list(own) for own in lists])
        return
    owners: list[int] = []
    parts: list[list[Tensor]] = [[] for _ in lists]
    held = 0
    for index, tensors in enumerate(zip(*lists, strict=True)):
        count = tensors[0].numel()
        if held and held + count > ENTRIES:
            yield Block(owners, parts)
            owners, parts, held = [], [[] for _ in lists], 0
        if count > ENTRIES and all(tensor.is_contiguous() for tensor in tensors):
            cut = [tensor.view(-1).split(ENTRIES) for tensor in tensors]
            for own in zip(*cut, strict=True):
                yield Block([index], [[part] for part in own])
            continue
        owners.append(index)
        for found, tensor in zip(parts, tensors, strict=True):
            found.append(tensor)
        held += count
    if owners:
        yield Block(owners, parts)
