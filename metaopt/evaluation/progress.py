"""A progress bar on a terminal, where tqdm is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[], object]
"""Called once a step."""


@contextmanager
def progress(name: str, total: int, shown: bool = True) -> Iterator[Advance]:
    """Show a bar of ``total`` steps on stderr while the context is open, and remove it then.

    Args:
        name: what is under way, for people.
        shown: whether to show it at all; without a terminal or tqdm there is none in any case.

    Returns:
        What to call after each step.
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
