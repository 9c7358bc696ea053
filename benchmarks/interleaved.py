"""Time callables in turn, A B A B ..., in one process, and report ratios pair by pair."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def interleaved(
    first: Callable[[], object], second: Callable[[], object], repeats: int = 7
) -> dict[str, float]:
    """Median seconds of each and the median of first / second, after one warm-up of both."""
    first(), second()
    seconds: list[tuple[float, float]] = []
    for _ in range(repeats):
        start = time.perf_counter()
        first()
        middle = time.perf_counter()
        second()
        seconds.append((middle - start, time.perf_counter() - middle))
    return {
        "first_seconds": statistics.median(a for a, _ in seconds),
        "second_seconds": statistics.median(b for _, b in seconds),
        "ratio": statistics.median(a / b for a, b in seconds),
        "ratio_min": min(a / b for a, b in seconds),
        "ratio_max": max(a / b for a, b in seconds),
    }
