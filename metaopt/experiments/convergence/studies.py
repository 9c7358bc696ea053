"""The table of studies: from a name to what runs it, in full or quickly."""

from __future__ import annotations

from collections.abc import Callable

from metaopt.experiments.convergence import (
    convex_order,
    error_bound,
    newton,
    newton_direction,
    one_teleport,
    sgd_basin,
)
from metaopt.experiments.convergence.outcome import Outcome

STUDIES: dict[str, Callable[[bool], Outcome]] = {
    "sgd-basin": sgd_basin.study,
    "error-bound": error_bound.study,
    "newton": newton.study,
    "one-teleport": one_teleport.study,
    "newton-direction": newton_direction.study,
    "convex-order": convex_order.study,
}
"""By name; the argument says whether it is quick."""
