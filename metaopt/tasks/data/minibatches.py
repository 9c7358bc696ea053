"""Cut data into minibatches by slicing a permutation, without a loop over samples."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from metaopt.errors import UserError


def batches(
    pairs: tuple[Tensor, Tensor], size: int, generator: torch.Generator, drop_last: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over the minibatches of one epoch, in an order that is drawn at the call.

    Args:
        pairs: x ``(n, ...)`` and y ``(n, ...)`` on one device; :class:`~metaopt.tasks.data.Images`
            are such a pair.
        size: pairs of a minibatch.
        generator: draws the order; equal states of it give equal minibatches.
        drop_last: whether to leave out a last minibatch of fewer than ``size`` pairs.

    Returns:
        An iterator over (x, y) of each minibatch. Each pair is in one of them.

    Raises:
        UserError: if x and y disagree in n, or there is no batch of that size.

    >>> x = torch.arange(5)
    >>> [len(y) for _, y in batches((x, x), 2, torch.Generator())]
    [2, 2, 1]
    """
    x, y = pairs
    total = len(x)
    if len(y) != total:
        raise UserError(
            f"expected as many x as y, got {total} and {len(y)}: pair each x with its y"
        )
    least = size if drop_last else 1
    if size < 1 or total < least:
        raise UserError(
            f"expected batches of 1 to {total} with drop_last={drop_last}, got a size of {size} "
            f"for {total} pairs: choose another size"
        )
    order = torch.randperm(total, generator=generator, device=generator.device).to(x.device)
    stop = total - total % size if drop_last else total
    return _sliced(x, y, [order[start : start + size] for start in range(0, stop, size)])


def _sliced(x: Tensor, y: Tensor, indices: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    for index in indices:
        yield x[index], y[index]
