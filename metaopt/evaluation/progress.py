"""A progress bar on a terminal, if tqdm is installed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from metaopt.extras import MissingExtra, extra

Advance = Callable[[], object]
"""A function without arguments, to be called after each step."""


@contextmanager
def progress(name: str, total: int, shown: bool = True) -> Iterator[Advance]:
    """Show a progress bar on stderr while the context is open, and remove it afterwards.

    Args:
        name: what is under way, for people.
        total: how many steps there are.
        shown: whether to show it; without a terminal or tqdm it is never shown.

    Returns:
        A function to call after each step.
    """
    try:
        with extra("train"):
            from tqdm import tqdm
    except MissingExtra:
        shown = False
    if not (shown and on_terminal()):
        yield lambda: None
        return
    with tqdm(total=total, desc=name, unit="step", leave=False) as bar:
        yield bar.update


def on_terminal() -> bool:
    """Return whether stderr is a terminal; False where it is closed."""
    stream = sys.stderr
    return stream is not None and not stream.closed and stream.isatty()
