"""The table of studies: from a name to what runs it, in full or quickly."""

from __future__ import annotations

from collections.abc import Callable

from metaopt.experiments.convergence.outcome import Outcome

STUDIES: dict[str, Callable[[bool], Outcome]] = {}
"""By name; the argument says whether it is quick."""
