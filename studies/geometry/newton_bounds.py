"""Bounds on one damped step of Newton's method: Lemma C.1, as printed and as it holds.

For delta = ||x - x*||, a step x - lambda H(x)^-1 grad f(x) with lambda >= 0, and a function with
mu <= H <= L whose Hessian is G-Lipschitz on the segment from x to x*,

    x_+ - x* = (1 - lambda) (x - x*) + lambda H(x)^-1 int_0^1 (H(x) - H(x + s (x* - x))) (x - x*) ds
             = H(x)^-1 int_0^1 ((H(x) - H_s) + (1 - lambda) H_s) (x - x*) ds.

The last form gives ``newton_bound``, the first ``sharper_newton_bound``, which needs no L. The
paper's proof takes the last form, and puts a factor s into both integrals where only the first has
one (eq. 61).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaopt.errors import UserError

Array = NDArray[np.float64]


@final
@dataclass(frozen=True)
class Constants:
    """Constants of a strongly convex function; the appendix's mu, L and G.

    Attributes:
        mu: a lower bound on the eigenvalues of the Hessian, positive.
        beta: L, an upper bound on them.
        lipschitz: G, a Lipschitz constant of the Hessian.

    Raises:
        UserError: for others than 0 < mu <= beta and lipschitz >= 0.
    """

    mu: float
    beta: float
    lipschitz: float

    def __post_init__(self) -> None:
        if not (0 < self.mu <= self.beta < np.inf and 0 <= self.lipschitz < np.inf):
            raise UserError(
                f"expected 0 < mu <= beta and lipschitz >= 0, got {self.mu}, {self.beta} and "
                f"{self.lipschitz}: the lemma is on strongly convex functions"
            )


def printed_newton_bound(distance: ArrayLike, damping: ArrayLike, of: Constants) -> Array:
    """Eq. 61: G/(2 mu) delta^2 + |1 - lambda| L/(2 mu) delta.

    False for L < 2 mu, and for lambda > 1 at every condition number; for 0 <= lambda <= 1 and
    L >= 2 mu it is true, by ``sharper_newton_bound``.
    """
    d, factor = _checked(distance, damping)
    return of.lipschitz / (2 * of.mu) * d**2 + abs(1 - factor) * of.beta / (2 * of.mu) * d


def newton_bound(distance: ArrayLike, damping: ArrayLike, of: Constants) -> Array:
    """What the paper's proof gives: G/(2 mu) delta^2 + |1 - lambda| (L/mu) delta."""
    d, factor = _checked(distance, damping)
    return of.lipschitz / (2 * of.mu) * d**2 + abs(1 - factor) * of.beta / of.mu * d


def sharper_newton_bound(distance: ArrayLike, damping: ArrayLike, of: Constants) -> Array:
    """lambda G/(2 mu) delta^2 + |1 - lambda| delta.

    Attained, for lambda >= 1 by ``falling_curvature``, for lambda <= 1 by L = w^2/2.
    """
    d, factor = _checked(distance, damping)
    return factor * of.lipschitz / (2 * of.mu) * d**2 + abs(1 - factor) * d


def bound_before_teleport(distance: ArrayLike, of: Constants) -> Array:
    """On ||w_1 - w*|| for gamma = 1/lambda_0, in ||w_0 - w*||: G L / (2 mu^2) delta_0^2.

    On a level set mu/2 ||w' - w*||^2 <= L(w_0) - L* <= L/2 ||w_0 - w*||^2.
    """
    d = np.asarray(distance, float)
    return of.lipschitz * of.beta / (2 * of.mu**2) * d**2


def _checked(distance: ArrayLike, damping: ArrayLike) -> tuple[Array, Array]:
    d, factor = np.asarray(distance, float), np.asarray(damping, float)
    if (factor < 0).any():
        raise UserError(
            f"expected a damping of 0 or more, got {factor.min()}: a negative one goes uphill"
        )
    return d, factor
