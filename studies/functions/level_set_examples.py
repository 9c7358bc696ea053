"""Small functions of two variables on which statements of sections 3.2 and 3.3 can be tried.

Each is called with w ``(2,)``, float64; most have their minimum 0 at 0, and docs/errata.md says
which statement fails on which.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def half_square(w: Tensor) -> Tensor:
    """||w||^2 / 2, of any number of variables."""
    return 0.5 * w.square().sum()


def quartic_well(w: Tensor) -> Tensor:
    """x^2/2 + y^2/2 + y^4/4: strictly convex; lambda_0 is 4 at the level .75, on the y axis."""
    return 0.5 * w[0] ** 2 + 0.5 * w[1] ** 2 + 0.25 * w[1] ** 4


def flat_axis(w: Tensor) -> Tensor:
    """5 x^2 + y^4: strictly convex, with a singular Hessian diag(10, 0) on the x axis."""
    return 5 * w[0] ** 2 + w[1] ** 4


def long_way(w: Tensor) -> Tensor:
    """x^2/2 + .05 y^2 + y^8: the steepest points of a level may be far from the minimum."""
    return 0.5 * w[0] ** 2 + 0.05 * w[1] ** 2 + w[1] ** 8


def two_axes(w: Tensor) -> Tensor:
    """2 x^2 + y^2/2 + y^4: even; its high levels are steepest on the y axis, its low on the x."""
    return 2 * w[0] ** 2 + 0.5 * w[1] ** 2 + w[1] ** 4


def tilted_quartic(angle: float = 60.0, steep: float = 4.0) -> Callable[[Tensor], Tensor]:
    """(steep x^2 + y^2) / 2 + (a . w)^4 with a at ``angle`` degrees to the x axis.

    Strictly convex. The steepest direction turns from a at high levels to the x axis at low ones.
    """
    radians = math.radians(angle)
    diagonal = torch.tensor([steep, 1.0], dtype=torch.float64)
    a = torch.tensor([math.cos(radians), math.sin(radians)], dtype=torch.float64)
    return lambda w: 0.5 * (diagonal * w * w).sum() + (a @ w) ** 4


def cubic_drift(w: Tensor) -> Tensor:
    """y + x y^3, on |x|, |y| < 1/2: the optimal points are y = 0, and gradient flows leave them."""
    return w[1] + w[0] * w[1] ** 3


def exponential_drift(w: Tensor) -> Tensor:
    """y + e^x y^3: the same on all of the plane.

    With a = e^x, A f = -6 a y^2 (1 + 4 a y^2 + 3 a^2 y^4 + a y^4 / 3) for A = (-g_y, g_x), which
    is 0 on y = 0 only, together with its derivatives.
    """
    return w[1] + w[0].exp() * w[1] ** 3


def slope_and_half_square(w: Tensor) -> Tensor:
    """x^2/2 + y: convex, with the Hessian diag(1, 0) and the gradient (x, 1) outside its range."""
    return 0.5 * w[0] ** 2 + w[1]


def falling_curvature(
    mu: float, lipschitz: float, width: float = 1.0
) -> Callable[[Tensor], Tensor]:
    """Make a function of one variable, w ``(1,)``, whose curvature f'' falls from L to mu.

    It is L = mu + G width on w < 0, and falls with slope G from there. So mu <= f'' <= L and f'' is
    G-Lipschitz. From w = width a step of Newton's method of size lambda >= 1 lands as far away as
    these constants allow: |w_1| = lambda G/(2 mu) width^2 + (lambda - 1) width.
    """

    def function(w: Tensor) -> Tensor:
        x = w[0]
        inner, outer = x.clamp(min=0), (x - width).clamp(min=0)
        return 0.5 * (mu + lipschitz * width) * x**2 - lipschitz * (inner**3 - outer**3) / 6

    return function


def ridge(w: Tensor) -> Tensor:
    """log cosh(w_1 + 2 w_2): of one linear combination, so ||grad L|| is constant on level sets."""
    z = w[0] + 2 * w[1]
    return z + torch.nn.functional.softplus(-2 * z) - math.log(2)


def radial(w: Tensor) -> Tensor:
    """||w||^4 / 4, of any number of variables: all points of a level set are equally steep."""
    return 0.25 * w.square().sum() ** 2
