"""The time that steps take, on a CPU or a GPU, without waiting for the GPU at each step."""

from __future__ import annotations

import time

import torch


class Clock:
    """A context that measures time; it may be entered many times, and :meth:`seconds` is the sum.

    Args:
        device: the device whose work is timed.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.total = 0.0
        self.start = 0.0
        self.events: list[tuple[torch.cuda.Event, ...]] = []

    def __enter__(self) -> None:
        if self.device.type == "cuda":
            pair = tuple(torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            pair[0].record(torch.cuda.current_stream(self.device))
            self.events.append(pair)
        else:
            self.start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        if self.device.type == "cuda":
            self.events[-1][1].record(torch.cuda.current_stream(self.device))
        else:
            self.total += time.perf_counter() - self.start

    def seconds(self) -> float:
        """Return the seconds of all entries so far; on a GPU this waits until they are done."""
        if self.events:
            torch.cuda.synchronize(self.device)
        milliseconds: float = sum(start.elapsed_time(end) for start, end in self.events)
        return self.total + milliseconds / 1e3
