"""Use torch's random numbers without changing the state of its generators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def same_randomness(seed: int | None = None) -> Iterator[None]:
    """Restore torch's global random generators, of all devices, at the end of a ``with`` block.

    Args:
        seed: seeds the generators inside the block. Without it, they go on from their current
            state.
    """
    cuda: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count())) if cuda else []):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed itself takes 2 ms
            if cuda:
                torch.cuda.manual_seed_all(seed)
        yield
