"""Vector fields on the space of parameters, what they do to functions, and their brackets.

A field A sends a point w ``(n,)`` to a vector ``(n,)``; as a derivation it sends a function f to
A f = sum_i a^i df/dw_i. All is exact, by forward-mode differentiation, and can be nested.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, hessian, jvp

from metaopt.errors import UserError

Function = Callable[[Tensor], Tensor]
"""A smooth function from w ``(n,)`` to a scalar, written with torch's functions."""

Field = Callable[[Tensor], Tensor]
"""A vector field: a function from w ``(n,)`` to ``(n,)``."""


def gradient(function: Function) -> Field:
    """Return the gradient dL/dw as a field."""
    return lambda w: grad(function)(w)


def reverse_gradient(function: Function) -> Field:
    """R = -dL/dw (section 3.3); its integral curves are gradient flows."""
    slope = gradient(function)
    return lambda w: -slope(w)


def hessian_of(function: Function, w: Tensor) -> Tensor:
    """Return the Hessian H at w, ``(n, n)``."""
    return hessian(function)(w)  # type: ignore[no-any-return]


def squared_gradient(function: Function) -> Function:
    """f(w) = ||dL/dw||^2 (Definition 3.4)."""
    slope = gradient(function)
    return lambda w: slope(w).square().sum()


def along(field: Field, function: Function) -> Function:
    """A f, the derivative of a function along a field."""
    return lambda w: jvp(function, (w,), (field(w),))[1]


def bracket(a: Field, b: Field) -> Field:
    """The Lie bracket [A, B] = A B - B A, with components A b^i - B a^i."""

    def components(w: Tensor) -> Tensor:
        of_b: Tensor = jvp(b, (w,), (a(w),))[1]
        of_a: Tensor = jvp(a, (w,), (b(w),))[1]
        return of_b - of_a

    return components


def turned_gradient(function: Function, m: Tensor) -> Field:
    """The field M dL/dw of Proposition 3.7, orthogonal to the gradient.

    Args:
        function: L.
        m: M, ``(n, n)``, antisymmetric.

    Raises:
        UserError: if it is not antisymmetric.
    """
    if m.dim() != 2 or not torch.equal(m, -m.mT):
        raise UserError(
            f"expected an antisymmetric M, got one of shape {tuple(m.shape)} with M + M^T != 0: "
            f"take (M - M^T) / 2"
        )
    slope = gradient(function)
    return lambda w: m @ slope(w)


def antisymmetric_basis(n: int) -> list[Tensor]:
    """E_ij - E_ji for i < j, float64."""
    basis = []
    for i in range(n):
        for j in range(i + 1, n):
            m = torch.zeros(n, n, dtype=torch.float64)
            m[i, j], m[j, i] = 1.0, -1.0
            basis.append(m)
    return basis
