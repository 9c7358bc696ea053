"""From the Lie algebra to the group: g = exp(T) and g^-1 = exp(-T), exact or first order."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

Exponential = Callable[[Tensor], tuple[Tensor, Tensor]]


class Spectral(NamedTuple):
    """T = V diag(t) V^T with an orthogonal V, which exponentiates entry by entry."""

    values: Tensor  # t, (*batch, k)
    vectors: Tensor  # V, (*batch, k, k), float64

    def dense(self) -> Tensor:
        """T as a matrix, ``(*batch, k, k)``."""
        return self._with(self.values)

    def exponential(self) -> tuple[Tensor, Tensor]:
        """(exp(T), exp(-T)), each I + V diag(e^t - 1) V^T: at T = 0 that is I bit for bit."""
        identity = torch.eye(
            self.vectors.shape[-1], dtype=self.vectors.dtype, device=self.vectors.device
        )
        g, inverse = (identity + self._with(torch.expm1(t)) for t in (self.values, -self.values))
        return g, inverse

    def _with(self, values: Tensor) -> Tensor:
        return (self.vectors * values.unsqueeze(-2)) @ self.vectors.mT


Element = Tensor | Spectral
"""In the Lie algebra of a site: ``(*batch, k, k)``, ``(*batch, k)`` if diagonal, or spectral."""

MAX_ELEMENT = 32.0  # Frobenius norm of T that the exponential is made for
MAX_DIRECTION = 8.0  # of each |t_i|: exp(T) exp(-T) is off by 2e-16 e^(2 max |t_i|)
SQUARINGS = 6  # so that the series is summed at a norm of 1/2 or less


def exact(element: Tensor) -> tuple[Tensor, Tensor]:
    """(exp(T), exp(-T)) for T of shape ``(*batch, k, k)``, to float64's precision.

    Scaling and squaring with as many squarings as a Frobenius norm of ``MAX_ELEMENT`` needs,
    whatever the norm is: no look at the values, so nothing waits for them on a GPU. exp(T) and
    exp(-T) share cosh and sinh / T, series in T^2 of degree 6, which Paterson and Stockmeyer's
    scheme sums in five products: the next term is below 1e-15. ``torch.linalg.matrix_exp``, the
    oracle in the tests, takes the exponential of a matrix of twice the size in its backward.
    """
    a = element * 2.0**-SQUARINGS
    a2 = a @ a
    a4 = a2 @ a2
    a6 = a4 @ a2
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device).expand_as(a)
    powers = torch.stack((identity, a2, a4, a6))
    sums = (_coefficients(a.dtype, a.device) @ powers.flatten(1)).view(powers.shape)
    low, high = sums[:2], sums[2:]
    cosh, sinh_over_a = low + a6 @ high
    sinh = a @ sinh_over_a
    both = torch.stack((cosh + sinh, cosh - sinh))
    for _ in range(SQUARINGS):
        both = both @ both
    return both[0], both[1]


@lru_cache
@torch.inference_mode(False)  # what is kept must serve callers outside it too
def _coefficients(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Rows: the low part of cosh and of sinh / T in (I, T^2, T^4, T^6), then the high parts.

    A series is low + T^6 high.
    """
    cosh, sinh = ([1 / math.factorial(2 * j + odd) for j in range(7)] for odd in (0, 1))
    rows = [[*cosh[:3], 0.0], [*sinh[:3], 0.0], cosh[3:], sinh[3:]]
    return torch.tensor(rows, dtype=dtype, device=device)


def first_order(element: Tensor) -> tuple[Tensor, Tensor]:
    """(I + T, I - T), as in the paper's released code; not inverse to each other beyond O(T)."""
    identity = torch.eye(element.shape[-1], dtype=element.dtype, device=element.device)
    return identity + element, identity - element


EXPONENTIALS: dict[str, Exponential] = {"exact": exact, "first_order": first_order}
