"""SIGINT and SIGTERM: they end a command with one line, or a run with a checkpoint."""

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
    """Handle signals with these functions inside the context.

    Outside the main thread, where Python does not allow it, nothing is changed.

    Args:
        handlers: the functions by signal.
    """
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
    """Raise :class:`Interrupted` on SIGTERM inside the context, so that open files are closed."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    with handling({signal.SIGTERM: end}):
        yield


@contextmanager
def noted() -> Iterator[Callable[[], int]]:
    """Note SIGINT and SIGTERM inside the context; only a second SIGINT ends at once.

    Yields:
        A function that returns the number of the signal that came first, or 0.
    """
    came = 0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if came and number == signal.SIGINT:
            raise KeyboardInterrupt
        came = came or number

    with handling({signal.SIGINT: note, signal.SIGTERM: note}):
        yield lambda: came
