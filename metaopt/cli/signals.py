"""SIGINT and SIGTERM: an end with one line, or noted for a run that ends with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from metaopt.errors import Interrupted

Handler = Callable[[int, FrameType | None], None]


@contextmanager
def handling(handlers: dict[signal.Signals, Handler]) -> Iterator[None]:
    """These handlers inside; outside the main thread, where Python takes none, nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # of another language
                signal.signal(number, handler)


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM raises :class:`Interrupted`, so that what is open is closed."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    with handling({signal.SIGTERM: end}):
        yield


@contextmanager
def noted() -> Iterator[Callable[[], int]]:
    """Gives a function that says which of the two came first, or 0; then SIGINT ends at once."""
    came = 0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if came and number == signal.SIGINT:
            raise KeyboardInterrupt
        came = came or number

    with handling({signal.SIGINT: note, signal.SIGTERM: note}):
        yield lambda: came
