"""A strongly convex function whose third derivative at the minimum is not zero, with its constants.

    L(w) = 1/2 w^T D w + sum_k c_k phi(a_k . w),   phi(z) = z^2 sigmoid(z).

phi is z^2 on one side and 0 on the other, so that L is no even function: Newton's method has order
2 on it, and not 3. Everything is relative to |w|: nothing cancels near the minimum, which is 0 at
w = 0, and distances down to 1e-150 can be measured.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import expit
from torch import Tensor

from metaopt.errors import UserError


def bend(z: Tensor) -> Tensor:
    """phi(z) = z^2 sigmoid(z)."""
    return z * z * torch.sigmoid(z)


def bend_second(z: float) -> float:
    """phi''(z); phi''(z) + phi''(-z) = 2, and phi''(0) = 1."""
    s = float(expit(z))
    return 2 * s + 4 * z * s * (1 - s) + z * z * s * (1 - s) * (1 - 2 * s)


def bend_third(z: float) -> float:
    """phi'''(z), an even function."""
    s = float(expit(z))
    p = s * (1 - s)
    return 6 * p + 6 * z * p * (1 - 2 * s) + z * z * p * (1 - 6 * p)


@functools.cache
def bend_constants() -> tuple[float, float, float]:
    """The least and the largest phi'', about -0.321 and 2.321, and the largest |phi'''|, 1.5.

    By scipy's bounded minimisation around the extremes of a grid on [-40, 40], beyond which phi''
    is within 1e-13 of 0 or 2.
    """
    grid = np.linspace(-40, 40, 8001)

    def least(values: np.ndarray, sign: float, second: bool) -> float:
        at = float(grid[int(np.argmin(sign * values))])
        function = bend_second if second else bend_third
        found = minimize_scalar(
            lambda z: sign * function(z), bounds=(at - 0.02, at + 0.02), method="bounded"
        )
        return sign * float(min(found.fun, sign * function(at)))

    second = np.array([bend_second(z) for z in grid])
    third = np.array([bend_third(z) for z in grid])
    low, high = least(second, 1, True), least(second, -1, True)
    return low, high, max(abs(least(third, 1, False)), abs(least(third, -1, False)))


@final
@dataclass(frozen=True, eq=False)
class SkewedQuadratic:
    """L(w) = 1/2 w^T D w + sum_k c_k phi(a_k . w), whose minimum 0 is at 0.

    Attributes:
        matrix: D, ``(n, n)``, symmetric.
        directions: a, ``(m, n)``.
        weights: c, ``(m,)``, positive.

    Raises:
        UserError: where the bounds do not show L to be strongly convex.
    """

    matrix: Tensor
    directions: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        if not torch.equal(self.matrix, self.matrix.mT) or not bool((self.weights > 0).all()):
            raise UserError(
                "expected a symmetric matrix and positive weights, got others: take "
                "(D + D^T) / 2 and weights above 0"
            )
        if self.mu <= 0:
            raise UserError(
                f"expected a strongly convex function, got a lower bound of {self.mu:.3g} on the "
                f"eigenvalues of its Hessian: take smaller weights"
            )

    @property
    def minimizer(self) -> Tensor:
        """The minimizer w* = 0, ``(n,)``."""
        return torch.zeros(len(self.matrix), dtype=torch.float64)

    @property
    def mu(self) -> float:
        """A lower bound on the eigenvalues of the Hessian, anywhere: lambda_min(D + min phi'' K)
        with K = sum_k c_k a_k a_k^T."""
        low = bend_constants()[0]
        return float(torch.linalg.eigvalsh(self.matrix + low * self._spread())[0])

    @property
    def beta(self) -> float:
        """An upper bound on them: lambda_max(D + max phi'' K). The paper's L in appendix C."""
        high = bend_constants()[1]
        return float(torch.linalg.eigvalsh(self.matrix + high * self._spread())[-1])

    @property
    def lipschitz(self) -> float:
        """G, of the Hessian: max |phi'''| lambda_max(sum_k c_k ||a_k|| a_k a_k^T)."""
        weighted = self._spread(self.directions.norm(dim=-1))
        return bend_constants()[2] * float(torch.linalg.eigvalsh(weighted)[-1])

    def __call__(self, w: Tensor) -> Tensor:
        """L(w)."""
        value: Tensor = 0.5 * w @ (self.matrix @ w) + self.weights @ bend(self.directions @ w)
        return value

    def _spread(self, factors: Tensor | float = 1.0) -> Tensor:
        a = self.directions
        spread: Tensor = a.mT @ torch.diag(self.weights * factors) @ a
        return (spread + spread.mT) / 2


def random_skewed(n: int, condition: float, generator: torch.Generator) -> SkewedQuadratic:
    """D with eigenvalues spread evenly from 1 to ``condition``, turned at random; n bends.

    The directions are random unit vectors and the weights 1/2, so that mu >= 1 - 0.161 n.
    """
    if not 1 <= n <= 6 or not condition >= 1:
        raise UserError(
            f"expected n of 1 to 6 and a condition number of 1 or more, got {n} and {condition}"
        )
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    matrix = q @ torch.diag(torch.linspace(1, condition, n, dtype=torch.float64)) @ q.mT
    a = torch.randn(n, n, generator=generator, dtype=torch.float64)
    return SkewedQuadratic(
        (matrix + matrix.mT) / 2,
        a / a.norm(dim=-1, keepdim=True),
        torch.full((n,), 0.5, dtype=torch.float64),
    )
