"""A function's gradient, Hessian and what the third derivative does to the gradient, at a point.

By reverse mode, which for a few variables is ten times faster than the nested forward mode of
``fields``; the tests hold one against the other.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from studies.geometry.fields import Function


class Derivatives(NamedTuple):
    """Derivatives of L at a point: g = grad L, the Hessian H and the third derivative T."""

    value: Tensor  # L, a scalar
    gradient: Tensor  # g, (n,)
    hessian: Tensor  # H, (n, n)
    product: Tensor  # H g = grad (||g||^2 / 2), (n,)
    product_jacobian: Tensor  # d(H g)/dw = T[g] + H^2, (n, n), symmetric

    @property
    def third_along_gradient(self) -> Tensor:
        """T[g, g], ``(n,)``: entry j is the sum over k, i of T_kij g_k g_i."""
        return self.product_jacobian @ self.gradient - self.hessian @ self.product


class Slopes(NamedTuple):
    """The part of it that a climb needs."""

    value: float
    gradient: Tensor  # g, (n,)
    product: Tensor  # H g, (n,)


def derivatives(function: Function, w: Tensor) -> Derivatives:
    """Compute all derivatives at w ``(n,)``."""
    x = w.detach().requires_grad_()
    value = function(x)
    gradient = _gradient(value, x)
    product = _gradient(0.5 * gradient.square().sum(), x)
    return Derivatives(
        value.detach(), gradient.detach(), _rows(gradient, x), product.detach(), _rows(product, x)
    )


def slopes(function: Function, w: Tensor) -> Slopes:
    """L, g and H g at w ``(n,)``, without matrices."""
    x = w.detach().requires_grad_()
    value = function(x)
    gradient = _gradient(value, x)
    product = _gradient(0.5 * gradient.square().sum(), x)
    return Slopes(float(value.detach()), gradient.detach(), product.detach())


def slope(function: Function, w: Tensor) -> Tensor:
    """Return the gradient g at w ``(n,)``."""
    return value_and_slope(function, w)[1]


def value_and_slope(function: Function, w: Tensor) -> tuple[float, Tensor]:
    """Return L and its gradient g ``(n,)``."""
    x = w.detach().requires_grad_()
    value = function(x)
    (gradient,) = torch.autograd.grad(value, x)
    return float(value.detach()), gradient


def gradients(function: Function, points: Tensor) -> Tensor:
    """g at many points ``(count, n)``, in the same shape."""
    x = points.detach().requires_grad_()
    return _gradient(vmap(function)(x).sum(), x).detach()


def _gradient(value: Tensor, x: Tensor) -> Tensor:
    """0 where the value does not depend on x."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(
        value, x, create_graph=True, allow_unused=True, materialize_grads=True
    )
    return gradient


def _rows(vector: Tensor, x: Tensor) -> Tensor:
    """The Jacobian of a vector, ``(n, n)``."""
    return torch.stack([_gradient(entry, x) for entry in vector]).detach()
