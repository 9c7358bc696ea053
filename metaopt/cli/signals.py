"""Signals that ask a command to end: it ends with one line, or a run with a checkpoint.

They are SIGINT and SIGTERM, and SIGHUP (the terminal is gone), SIGUSR1 (a cluster's warning) and
SIGXCPU (the limit of processor time). The last three stay ignored where they were ignored at the
start, as SIGHUP is under nohup. Windows has the first two alone.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from metaopt.errors import Interrupted

Handler = Callable[[int, FrameType | None], None]


def ending() -> list[signal.Signals]:
    """Return the signals besides SIGINT that end a command of this process."""
    others = [getattr(signal, name, None) for name in ("SIGHUP", "SIGUSR1", "SIGXCPU")]
    known = [s for s in others if s is not None and signal.getsignal(s) != signal.SIG_IGN]
    return [signal.SIGTERM, *known]


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
def ended_by_signals() -> Iterator[None]:
    """Raise :class:`Interrupted` on a signal of :func:`ending`, so that open files are closed."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    with handling(dict.fromkeys(ending(), end)):
        yield


@contextmanager
def noted() -> Iterator[Callable[[], int]]:
    """Note SIGINT and the signals of :func:`ending`; only a second SIGINT ends at once.

    Yields:
        A function that returns the number of the signal that came first, or 0.
    """
    came = 0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if came and number == signal.SIGINT:
            raise KeyboardInterrupt
        came = came or number

    with handling(dict.fromkeys((signal.SIGINT, *ending()), note)):
        yield lambda: came
