"""The table of the studies of section 3: a function for each name, which runs it."""

from __future__ import annotations

from collections.abc import Callable

from studies.convergence import (
    convex_order,
    curvature_shift,
    error_bound,
    landscapes,
    newton,
    newton_direction,
    one_teleport,
    sgd_basin,
    symmetric_families,
)
from studies.convergence.outcome import Outcome

STUDIES: dict[str, Callable[[bool], Outcome]] = {
    "sgd-basin": sgd_basin.study,
    "error-bound": error_bound.study,
    "newton": newton.study,
    "one-teleport": one_teleport.study,
    "newton-direction": newton_direction.study,
    "convex-order": convex_order.study,
    "curvature-shift": curvature_shift.study,
    "landscapes": landscapes.study,
    "symmetric-families": symmetric_families.study,
}
"""Functions by name. The argument says whether to run the quick form."""
