"""A progress bar on a terminal, if tqdm is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
        from tqdm import tqdm
    except ImportError:  # of the extra "train"
        shown = False
    if not shown:
        yield lambda: None
        return
    with tqdm(total=total, desc=name, unit="step", leave=False, disable=None) as bar:
        yield bar.update
