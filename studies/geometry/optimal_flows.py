"""Gradient flows after one teleportation: when they stay at the steepest points (section 3.3).

With g = grad L, H, the third derivative T, R = -g and A = M g for an antisymmetric M (Prop. 3.7):

    [A, R] L = -A ||g||^2 = -2 (M g)^T H g                                 (eq. 65)
    d/dt [A, R] L = R [A, R] L along a gradient flow                       (eq. 66, printed with -R)
    R [A, R] L = 2 (M g)^T T[g, g] + 2 (M g)^T H^2 g                       (eq. 77: the first term)

The last term vanishes at optimal points, where H g is a multiple of g. Elsewhere, with
lambda = g^T H g / ||g||^2, P = I - g g^T / ||g||^2 and K = (P H M g g^T - g (P H M g)^T) / ||g||^2,
which is antisymmetric,

    2 (M g)^T H^2 g = -lambda [A, R] L - [K g, R] L.

So where (M g)^T T[g, g] = 0 near the flow (eq. 12 not at optimal points alone, as in all
quadratics), the numbers [A, R] L solve a linear equation along it, and stay 0 where they are 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import solve_ivp
from scipy.interpolate import PchipInterpolator
from torch import Tensor
from torch.func import hessian, jacfwd

from metaopt.errors import UserError
from studies.geometry.derivatives import derivatives, slope, value_and_slope
from studies.geometry.fields import (
    Function,
    along,
    bracket,
    reverse_gradient,
    turned_gradient,
)
from studies.geometry.level_sets import steepest_point

Array = NDArray[np.float64]


class Flow(NamedTuple):
    """A gradient flow at K moments."""

    times: Array  # (K,)
    points: Tensor  # (K, n)
    losses: Array  # (K,)
    squares: Array  # (K,) ||g||^2


def loss_bracket(function: Function, m: Tensor) -> Function:
    """[A, R] L for A = M g, by nested forward mode."""
    field = bracket(turned_gradient(function, m), reverse_gradient(function))
    return along(field, function)


def bracket_rate(function: Function, m: Tensor) -> Function:
    """R [A, R] L, by nested forward mode."""
    return along(reverse_gradient(function), loss_bracket(function, m))


def equation_12(function: Function, w: Tensor, m: Tensor) -> Tensor:
    """M^j_a g_a g_k g_i T_kij = (M g)^T T[g, g], a scalar."""
    at = derivatives(function, w)
    return (m @ at.gradient) @ at.third_along_gradient


def bracket_rate_formula(function: Function, w: Tensor, m: Tensor) -> Tensor:
    """R [A, R] L = 2 (M g)^T (T[g, g] + H^2 g), at any point."""
    at = derivatives(function, w)
    return 2 * (m @ at.gradient) @ (at.product_jacobian @ at.gradient)


def companion(function: Function, w: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    """lambda, a scalar, and K, ``(n, n)``, of the module's last equation."""
    at = derivatives(function, w)
    g, square = at.gradient, at.gradient.square().sum()
    y = at.hessian @ (m @ g)
    across = y - (y @ g / square) * g
    k = (torch.outer(across, g) - torch.outer(g, across)) / square
    return g @ at.product / square, k


def third_derivative(function: Function, w: Tensor) -> Tensor:
    """T_kij, ``(n, n, n)``, symmetric."""
    third: Tensor = jacfwd(hessian(function))(w)
    return third


def condition_d3(third: Tensor, g: Tensor) -> float:
    """max |T_kij g_a - T_kia g_j| / (||T|| ||g||): 0 where Prop. D.3 applies.

    It does where T = c g g g. On a region where c is not 0, L is then a function of one linear
    combination of the parameters, and ||g|| is constant on its level sets; else L is quadratic.
    """
    products = third[..., None] * g  # k, i, j, a
    return _relative(products - products.transpose(2, 3), third, g)


def condition_in_section_3(third: Tensor, g: Tensor) -> float:
    """Measure the condition as section 3.3 prints it: T_kij g_i = T_kia g_a, without sums."""
    left = (third * g[None, :, None])[..., :, None]  # k, i, j, 1
    right = (third * g)[..., None, :]  # k, i, 1, a
    return _relative(left - right, third, g)


def gradient_flow(
    function: Function, start: Tensor, times: ArrayLike, tolerance: float = 1e-11
) -> Flow:
    """dw/dt = -g from ``start`` at times that rise from 0, by scipy's DOP853."""
    at = np.asarray(times, float)
    solved = solve_ivp(
        lambda _, w: -slope(function, torch.from_numpy(w)).numpy(),
        (0.0, float(at[-1])),
        start.numpy(),
        method="DOP853",
        t_eval=at,
        rtol=tolerance,
        atol=1e-3 * tolerance,
    )
    _check(solved.success, solved.message)
    return _flow(function, at, solved.y.T)


def descent(
    function: Function,
    start: Tensor,
    levels: ArrayLike,
    lowest: float = 0.0,
    tolerance: float = 1e-11,
) -> Flow:
    """Compute the gradient flow at given levels that fall from that of ``start``, and its times.

    Integrates over tau = -log(L - L*), in which every level is reached: dw/dtau = -g dt/dtau and
    dt/dtau = (L - L*) / ||g||^2.

    Raises:
        UserError: for levels that do not fall from L(start) to above L*.
    """
    heights = np.asarray(levels, float) - lowest
    first = float(function(start)) - lowest
    if not ((np.diff(heights) < 0).all() and heights[-1] > 0):
        raise UserError(
            f"expected levels that fall and stay above the minimum {lowest}, got a last one of "
            f"{heights[-1] + lowest}: end at a positive height"
        )
    if abs(heights[0] - first) > 1e-9 * first:
        raise UserError(
            f"expected the first level to be that of the start, {first + lowest}, got "
            f"{heights[0] + lowest}: begin there"
        )
    tau = np.log(heights[0] / heights)

    def velocity(_: float, state: Array) -> Array:
        value, gradient = value_and_slope(function, torch.from_numpy(state[:-1]))
        g = gradient.numpy()
        pace = (value - lowest) / float(g @ g)
        return np.append(-pace * g, pace)

    solved = solve_ivp(
        velocity,
        (0.0, float(tau[-1])),
        np.append(start.numpy(), 0.0),
        method="DOP853",
        t_eval=tau,
        rtol=tolerance,
        atol=1e-4 * tolerance,
    )
    _check(solved.success, solved.message)
    return _flow(function, solved.y[-1], solved.y[:-1].T)


def steepest_squares(
    function: Function, minimizer: Tensor, levels: Sequence[float], generator: torch.Generator
) -> Array:
    """max ||g||^2 over each level set, ``(K,)``; levels in order, as the last helps the next."""
    found: list[float] = []
    near: list[Tensor] = []
    for level in levels:
        best = steepest_point(function, minimizer, level, generator, samples=64, near=near)
        near = [best.point - minimizer]
        found.append(best.gradient_norm**2)
    return np.array(found)


def times_at_steepest(levels: ArrayLike, squares: ArrayLike, lowest: float = 0.0) -> Array:
    """When a flow that teleports at all times reaches falling levels, ``(K,)`` from 0.

    It falls at dL/dt = -max ||g||^2; 1 / -(d log(L - L*)/dt) is interpolated over the logarithm of
    the level by a monotone cubic and integrated.
    """
    heights = np.asarray(levels, float) - lowest
    tau = np.log(heights[0] / heights)
    pace = PchipInterpolator(tau, heights / np.asarray(squares, float))
    times: Array = pace.antiderivative()(tau)
    return times


def _relative(difference: Tensor, third: Tensor, g: Tensor) -> float:
    size = float(third.norm() * g.norm())
    return float(difference.abs().max()) / size if size > 0 else 0.0


def _flow(function: Function, times: Array, points: Array) -> Flow:
    w = torch.from_numpy(np.ascontiguousarray(points))
    at = [value_and_slope(function, row) for row in w]
    squares = [float(gradient.square().sum()) for _, gradient in at]
    return Flow(times, w, np.array([value for value, _ in at]), np.array(squares))


def _check(success: bool, message: str) -> None:
    if not success:
        raise UserError(
            f"expected a flow that can be integrated, got {message!r}: take a shorter time"
        )
