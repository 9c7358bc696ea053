"""Derivatives of curves gamma(t) = exp(t M) . w on an orbit at t = 0 (appendix E.4).

By forward-mode differentiation of the orbit itself, for every action. The closed form for eq. 78 at
one site is its twin in the tests; docs/errata.md says which factors of eqs. 91 and 93 are missing
as printed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import jvp

from metaopt.symmetry.orbit import Orbit

Curve = Callable[[Tensor], tuple[Tensor, ...]]
"""A function from t, a scalar, to parameters in order."""


def derivatives(
    orbit: Orbit, parameters: Sequence[Tensor], elements: Sequence[Tensor], order: int
) -> list[list[Tensor]]:
    """Compute the derivatives of a curve on an orbit, differentiably in ``parameters`` and in M.

    Args:
        orbit: the orbit of the parameters.
        parameters: w, in float64 for accuracy.
        elements: the values of M at each site, in the shapes of ``orbit.identity``. All sites move
            together.
        order: the highest derivative.

    Returns:
        gamma', gamma'', ..., each with one tensor a parameter.
    """

    def points(t: Tensor) -> tuple[Tensor, ...]:
        moved = orbit.elements(parameters, [t * element for element in elements])
        return tuple(orbit.move(parameters, moved).parameters)

    start = torch.zeros((), dtype=torch.float64, device=parameters[0].device)
    found = []
    curve: Curve = points
    for _ in range(order):
        curve = _differentiated(curve)
        found.append(list(curve(start)))
    return found


def _differentiated(curve: Curve) -> Curve:
    def slope(t: Tensor) -> tuple[Tensor, ...]:
        tangents: tuple[Tensor, ...] = jvp(curve, (t,), (torch.ones_like(t),))[1]
        return tangents

    return slope
