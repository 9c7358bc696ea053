"""The steepest point of a level set of a strictly convex function, to high precision (section 3.2).

It maximises ||g||^2 subject to L = level (eq. 10), so with some lambda_0 (eq. 64)

    H g = lambda_0 g,   L(w') = level,   lambda_0 = g^T H g / ||g||^2,

which a climb from the best of many points comes near to and Newton's method solves. A gradient step
from there is a damped step of Newton's method (eq. 11). g = grad L and H is the Hessian.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.stats import linregress
from torch import Tensor
from torch.func import vmap

from metaopt.errors import UserError
from studies.geometry.derivatives import Derivatives, Slopes, derivatives, gradients, slopes
from studies.geometry.fields import Function

SOLVED = 1e-9
"""The relative residual of the critical equations at which a point counts as found."""
Array = NDArray[np.float64]


class SteepestPoint(NamedTuple):
    """The steepest point of a level set."""

    point: Tensor  # w', (n,)
    multiplier: float  # lambda_0
    gradient_norm: float  # ||g(w')||
    residual: float  # the larger of ||H g - lambda_0 g|| / ||H g|| and |L - level| / (level - L*)


class Order(NamedTuple):
    """after = constant * before^order, by least squares of the logarithms."""

    order: float
    constant: float
    pairs: int


def multiplier(gradient: Tensor, product: Tensor) -> float:
    """lambda_0 = g^T H g / ||g||^2, from g and H g ``(n,)``."""
    return float(gradient @ product / gradient.square().sum())


def damped_newton_step(function: Function, w: Tensor, damping: float) -> Tensor:
    """w - damping H^-1 g, ``(n,)``.

    Raises:
        UserError: where H is not positive definite, as far as float64 can tell.
    """
    at = derivatives(function, w)
    values, vectors = torch.linalg.eigh(at.hessian)
    if not values[0] > 1e-14 * values[-1].abs():
        raise UserError(
            f"expected a positive definite Hessian, got a smallest eigenvalue of "
            f"{float(values[0]):.3g}: strict convexity is not enough, strong convexity is"
        )
    stepped: Tensor = w - damping * (vectors @ ((vectors.mT @ at.gradient) / values))
    return stepped


def order_of_convergence(before: ArrayLike, after: ArrayLike) -> Order:
    """Fit the order of convergence to pairs of distances to the limit, one step apart.

    Args:
        before: distances before a step, positive.
        after: distances after it, positive.

    Raises:
        UserError: for fewer than three pairs, or where a distance is not positive.
    """
    x, y = (np.asarray(values, dtype=float) for values in (before, after))
    if x.shape != y.shape or x.size < 3 or not ((x > 0) & (y > 0)).all():
        raise UserError(
            f"expected three or more pairs of positive distances, got shapes {x.shape} and "
            f"{y.shape} or a distance of 0: stop before the limit is reached"
        )
    fit = linregress(np.log(x), np.log(y))
    return Order(float(fit.slope), float(np.exp(fit.intercept)), int(x.size))


def on_level_set(function: Function, minimizer: Tensor, level: float, directions: Tensor) -> Tensor:
    """Find where rays from the minimizer meet a level set: once each, as the function is convex.

    Newton's method runs along each ray, from beyond the level set.

    Args:
        function: L, convex.
        minimizer: w*, ``(n,)``.
        level: the value of L on the level set.
        directions: of the rays, ``(count, n)``, of any length but 0.

    Returns:
        The points, ``(count, n)``.

    Raises:
        UserError: for a level that is not above the minimum, or one that a ray does not reach.
    """
    rise = level - float(function(minimizer))
    if not 0 < rise < math.inf:
        raise UserError(
            f"expected a level above the minimum, got {rise:.3g} more than it: check the minimizer"
        )
    u = directions / directions.norm(dim=-1, keepdim=True)
    values = vmap(function)
    radius = torch.full(u.shape[:1], rise**0.5, dtype=torch.float64)
    for _ in range(200):
        below = ~(values(minimizer + radius[:, None] * u) >= level)
        if not below.any():
            break
        radius = torch.where(below, 2 * radius, radius)
    else:
        raise UserError(
            "expected bounded level sets, got a ray that stays below the level: take a function "
            "that has a minimizer, and that point"
        )
    for _ in range(100):
        x = minimizer + radius[:, None] * u
        step = (values(x) - level) / (gradients(function, x) * u).sum(-1)
        radius = radius - step
        if bool((step.abs() <= 1e-14 * radius).all()):
            break
    met: Tensor = minimizer + radius[:, None] * u
    return met


def solve_critical(
    function: Function, start: Tensor, level: float, lowest: float = 0.0
) -> SteepestPoint:
    """Solve H g = lambda_0 g and L = level by Newton's method, from a point near the solution.

    Equations and unknowns are scaled, so that it works at any level. Where the system is singular,
    the shortest step is taken.

    Args:
        function: L.
        start: where to begin, ``(n,)``.
        level: the value of L on the level set.
        lowest: L*, to which the level's error is relative.
    """
    w, rise, scale = start, level - lowest, start.norm()
    at = derivatives(function, w)
    best = _measured(at, w, level, rise)
    for _ in range(30):
        factor, size = multiplier(at.gradient, at.product), at.product.norm()
        off = torch.cat(
            [(at.product - factor * at.gradient) / size, (at.value[None] - level) / rise]
        )
        rows = torch.cat([at.product_jacobian - factor * at.hessian, -at.gradient[:, None]], dim=1)
        last = torch.cat([at.gradient, at.gradient.new_zeros(1)])
        system = torch.cat([rows / size, last[None] / rise])
        units = torch.cat([scale.expand(len(w)), at.gradient.new_full((1,), factor)])
        if not (system.isfinite().all() and off.isfinite().all()):
            break
        step = torch.linalg.pinv(system * units, rtol=1e-13) @ off
        w = w - scale * step[:-1]
        at = derivatives(function, w)
        found = _measured(at, w, level, rise)
        better = found.residual < best.residual
        best = found if better else best
        if best.residual < 1e-12 and not better:
            break
    return best


def steepest_point(
    function: Function,
    minimizer: Tensor,
    level: float,
    generator: torch.Generator,
    samples: int = 256,
    climbs: int = 2,
    near: Sequence[Tensor] = (),
) -> SteepestPoint:
    """Find the point of {L = level} with the largest gradient norm, as far as the samples tell.

    A climb (scipy's SLSQP) starts at the steepest of the samples and at the next that are not near
    one already taken; Newton's method then solves the critical equations.

    Args:
        function: L, strictly convex.
        minimizer: w*, ``(n,)``.
        level: the value of L on the level set.
        generator: draws the samples.
        samples: random directions from the minimizer, beside the axes.
        climbs: how many samples to start from.
        near: directions ``(n,)`` from the minimizer to add to the samples.

    Raises:
        UserError: for a function that is seen not to be strictly convex, or a level with no
            steepest point that can be found.
    """
    n, lowest = len(minimizer), float(function(minimizer))
    axes = torch.eye(n, dtype=torch.float64)
    drawn = torch.randn(samples, n, generator=generator, dtype=torch.float64)
    rays = torch.cat([drawn, axes, -axes, *(direction[None] for direction in near)])
    points = on_level_set(function, minimizer, level, rays)
    _check_convex(function, points, level, lowest)
    norms = gradients(function, points).norm(dim=-1)
    found = [
        solve_critical(
            function, _climb(function, minimizer, points[start], level, lowest), level, lowest
        )
        for start in _apart(points - minimizer, norms, climbs)
    ]
    best = max(found, key=lambda p: p.gradient_norm if p.residual <= SOLVED else -1.0)
    if best.residual > SOLVED or best.gradient_norm < float(norms.max()) * (1 - 1e-9):
        raise UserError(
            f"expected a steepest point that can be found, got a residual of "
            f"{min(p.residual for p in found):.1e}: take more samples or climbs"
        )
    return best


def _check_convex(function: Function, points: Tensor, level: float, lowest: float) -> None:
    """The middle between two points of a level set lies below it."""
    gaps = (points[1:] - points[:-1]).norm(dim=-1)
    apart = gaps > 1e-3 * points[1:].norm(dim=-1)
    middles = vmap(function)((points[1:] + points[:-1]) / 2)[apart] - lowest
    if bool((middles >= (level - lowest) * (1 - 1e-12)).any()):
        raise UserError(
            "expected a strictly convex function, got two points of a level set whose middle is "
            "not below it: a ray may meet the level sets of others more than once"
        )


def _measured(at: Derivatives, w: Tensor, level: float, rise: float) -> SteepestPoint:
    factor = multiplier(at.gradient, at.product)
    off = float((at.product - factor * at.gradient).norm() / at.product.norm())
    height = abs(float(at.value) - level) / rise
    worst = max(off, height) if math.isfinite(off + height) else math.inf
    return SteepestPoint(w, factor, float(at.gradient.norm()), worst)


def _apart(offsets: Tensor, norms: Tensor, count: int) -> list[int]:
    """The steepest, then the steepest of those at more than 30 degrees to all taken, and so on."""
    unit = offsets / offsets.norm(dim=-1, keepdim=True)
    left, taken = norms.clone(), [int(norms.argmax())]
    while len(taken) < count:
        left[unit @ unit[taken[-1]] > math.cos(math.pi / 6)] = 0
        if not bool(left.any()):
            break
        taken.append(int(left.argmax()))
    return taken


def _climb(
    function: Function, minimizer: Tensor, start: Tensor, level: float, lowest: float
) -> Tensor:
    """log ||g|| over the level set, in units of the start's distance from the minimizer."""
    scale = float((start - minimizer).norm())
    unit = float(slopes(function, start).gradient.norm())

    @functools.cache
    def at(place: bytes) -> Slopes:
        return slopes(function, minimizer + scale * torch.from_numpy(np.frombuffer(place).copy()))

    def height(z: Array) -> float:
        return float(np.log(max(at(z.tobytes()).value - lowest, 1e-300) / (level - lowest)))

    def height_slope(z: Array) -> Array:
        here = at(z.tobytes())
        slope: Array = scale * here.gradient.numpy() / (here.value - lowest)
        return slope

    def target(z: Array) -> tuple[float, Array]:
        here = at(z.tobytes())
        norm = float(here.gradient.norm())
        return -math.log(norm / unit), -scale * here.product.numpy() / norm**2

    found = minimize(
        target,
        ((start - minimizer) / scale).numpy(),
        jac=True,
        method="SLSQP",
        constraints={"type": "eq", "fun": height, "jac": height_slope},
        options={"maxiter": 40, "ftol": 1e-10},
    )
    return minimizer + scale * torch.from_numpy(found.x)
