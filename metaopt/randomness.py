"""torch's generators, left as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def same_randomness(seed: int | None = None) -> Iterator[None]:
    """What is drawn inside changes no generator outside, on no device.

    Args:
        seed: of the draws inside; else they go on from where the generators are.
    """
    cuda: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count())) if cuda else []):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed itself takes 2 ms
            if cuda:
                torch.cuda.manual_seed_all(seed)
        yield
