"""How far a minimum is after it was shifted, on average over all directions (appendix F.2).

The minimum is a plane curve gamma through w_0 = 0 with its centre of curvature on the positive
second axis; or, in n dimensions, the hypersurface that it leaves when turned around that axis. A
shift by r in a direction drawn uniformly is, seen from gamma, w_0 moved onto the sphere S_r. Both
curves here scale: the mean distance is r F(kappa r), with

    F(s) = A [1 + (n - 1)(n - 3) / (8 (n + 1)) s^2 + ...],   A = E |z| on the unit sphere,

which is 2/pi - s^2 / (12 pi) in the plane. For any smooth hypersurface with principal curvatures
kappa_i the square becomes r^2 [(sum kappa_i)^2 - 2 sum kappa_i^2] / (8 (n + 1)): the signed
distance to it is z - r/2 q - r^2/2 p z with q = sum kappa_i x_i^2 and p = sum kappa_i^2 x_i^2.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.special import ellipe, ellipeinc, gamma
from torch import Tensor

from metaopt.errors import UserError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PlaneCurve(ABC):
    """A curve through the origin, mirrored in the second axis.

    Attributes:
        k: its parameter in eqs. 96 and 97, positive.
    """

    k: float

    def __post_init__(self) -> None:
        if not 0 < self.k < math.inf:
            raise UserError(f"expected k > 0, got {self.k}: a line has no curvature to study")

    @property
    @abstractmethod
    def curvature(self) -> float:
        """The curvature kappa at the origin."""

    @abstractmethod
    def point(self, t: Tensor) -> Tensor:
        """gamma(t), ``(2,)``, differentiable; the origin at t = 0."""

    @abstractmethod
    def distance(self, points: Array) -> Array:
        """From points ``(..., 2)`` to the curve, ``(...)`` (eq. 98)."""

    @abstractmethod
    def crossing(self, r: float) -> float | None:
        """The angle in (0, pi/2) at which S_r crosses the curve, where the distance has a kink."""


@final
@dataclass(frozen=True)
class Parabola(PlaneCurve):
    """The parabola (t, k t^2) of eq. 96."""

    @classmethod
    def of_curvature(cls, kappa: float) -> Parabola:
        """Return the parabola with this kappa at the origin."""
        return cls(kappa / 2)

    @property
    def curvature(self) -> float:
        return 2 * self.k

    def point(self, t: Tensor) -> Tensor:
        return torch.stack((t, self.k * t.square()))

    def distance(self, points: Array) -> Array:
        """Compute distances by the cubic of the nearest point.

        It is u^3 + (1 - 2 Y) u / 2 = X / 2 in units of 1 / k. Its largest root is the only one with
        the sign of X (taken positive).
        """
        x, y = np.abs(self.k * points[..., 0]), self.k * points[..., 1]
        u = _largest_root((1 - 2 * y) / 2, x / 2)
        return np.asarray(np.hypot(u - x, u * u - y) / self.k)

    def crossing(self, r: float) -> float | None:
        rho = self.k * r  # sin = rho cos^2
        return math.asin(2 * rho / (1 + math.sqrt(1 + 4 * rho**2)))


@final
@dataclass(frozen=True)
class Circle(PlaneCurve):
    """(k sin t, k - k cos t), of radius k: eq. 97 moved so that it passes through w_0."""

    @classmethod
    def of_curvature(cls, kappa: float) -> Circle:
        """Return the circle with this kappa."""
        return cls(1 / kappa)

    @property
    def curvature(self) -> float:
        return 1 / self.k

    def point(self, t: Tensor) -> Tensor:
        return torch.stack((self.k * torch.sin(t), self.k * (1 - torch.cos(t))))

    def distance(self, points: Array) -> Array:
        return np.asarray(np.abs(np.hypot(points[..., 0], points[..., 1] - self.k) - self.k))

    def crossing(self, r: float) -> float | None:
        return math.asin(r / (2 * self.k)) if r < 2 * self.k else None

    def mean_distance(self, r: float) -> float:
        """That of :func:`mean_distance` in the plane, in closed form by elliptic integrals.

        With s = r / k the distance to the centre is k (1 + s) sqrt(1 - m sin^2 phi), m =
        4 s / (1 + s)^2, where phi is uniform; less than k where phi is between phi_0 and
        pi - phi_0.
        """
        s = _positive_radius(r) / self.k
        m = 4 * s / (1 + s) ** 2
        inside = 0.0
        if s < 2:
            phi = math.acos(-s / 2) / 2
            inside = (math.pi - 2 * phi) - 2 * (1 + s) * (ellipe(m) - ellipeinc(phi, m))
        total = 2 * (1 + s) * ellipe(m) - math.pi
        return float(self.k * (total + 2 * inside) / math.pi)


def printed_circle(k: float, theta: Tensor) -> Tensor:
    """Eq. 97 as printed, (k cos theta, k sin theta): at a distance k from w_0 = 0."""
    return torch.stack((k * torch.cos(theta), k * torch.sin(theta)))


def on_sphere(r: float, theta: Array) -> Array:
    """The points of S_r at these angles, ``(..., 2)``."""
    return np.stack((r * np.cos(theta), r * np.sin(theta)), axis=-1)


def mean_distance(curve: PlaneCurve, r: float, dimension: int = 2) -> float:
    """Compute E dist(w, gamma) for w uniform on the sphere S_r, by quadrature.

    Args:
        curve: gamma.
        r: the radius of the sphere.
        dimension: n; above 2 of the hypersurface that the curve leaves when turned.

    Raises:
        UserError: for r <= 0 or n < 2.
    """
    _positive_radius(r)
    if dimension < 2:
        raise UserError(f"expected 2 dimensions or more, got {dimension}: a curve needs a plane")
    power = dimension - 2

    def integrand(theta: float) -> float:
        point = np.array((r * math.cos(theta), r * math.sin(theta)))
        return float(curve.distance(point)) * math.cos(theta) ** power

    kink = curve.crossing(r)
    ends = [-math.pi / 2, *([] if kink is None else [kink]), math.pi / 2]
    parts = [
        quad(integrand, low, high, epsabs=1e-13 * r, epsrel=1e-11, limit=200)[0]
        for low, high in pairwise(ends)
    ]
    area = math.sqrt(math.pi) * gamma((power + 1) / 2) / gamma(power / 2 + 1)
    return float(sum(parts) / area)


def arc_integral(curve: PlaneCurve, r: float) -> float:
    """The integral of the distance over the arc length of S_r, 2 pi r times the mean."""
    return 2 * math.pi * r * mean_distance(curve, r)


def sampled_distances(curve: PlaneCurve, r: float, count: int, generator: torch.Generator) -> Array:
    """Distances at ``count`` random points of S_r in the plane, ``(count,)``."""
    drawn = torch.rand(_positive_count(count), generator=generator, dtype=torch.float64)
    return curve.distance(on_sphere(r, 2 * math.pi * drawn.numpy()))


def flat_mean(dimension: int) -> float:
    """A = E |z| on the unit sphere, the mean distance to a plane over r: 2/pi, 1/2, 4/(3 pi)..."""
    return float(gamma(dimension / 2) / (math.sqrt(math.pi) * gamma((dimension + 1) / 2)))


def small_shift(principal: Sequence[float], r: float) -> float:
    """Compute the mean distance over r up to the square of r, for a minimum of dimension n - 1.

    Args:
        principal: kappa_i at w_0, n - 1 of them, signed.
        r: how far the minimum is shifted.
    """
    kappa = np.asarray(principal, dtype=float)
    n = len(kappa) + 1
    bend = float(kappa.sum() ** 2 - 2 * np.square(kappa).sum())
    return flat_mean(n) * (1 + r**2 * bend / (8 * (n + 1)))


def torus_mean(big: float, small: float, r: float, inner: bool = False) -> float:
    """Compute the mean distance over S_r to a torus, around a point of its outer or inner equator.

    Its principal curvatures there are 1 / small and 1 / (big + small), or -1 / (big - small): a
    minimum that bends both ways. Gauss-Legendre on both sides of the kink, in each meridian.

    Args:
        big: the radius of the circle in the middle of the tube.
        small: the radius of the tube.
        r: below half of each, so that each meridian of S_r crosses the torus once.
        inner: whether the point is on the inner equator.

    Raises:
        UserError: for a larger r.
    """
    if not 0 < r < min(small, big - small) / 2:
        raise UserError(
            f"expected 0 < r < min(small, big - small) / 2, got r = {r} with radii {big} and "
            f"{small}: shift by less"
        )
    side = -1.0 if inner else 1.0
    turn = 2 * math.pi * (np.arange(64) + 0.5) / 64

    def signed(u: Array) -> Array:
        """Return signed distances of the points at heights u r above the tangent plane."""
        across = r * np.sqrt(np.maximum(1 - u * u, 0))
        x = big + side * (small + u * r)
        ring = np.hypot(x, across * np.cos(turn)) - big
        return np.asarray(np.hypot(ring, across * np.sin(turn)) - small)

    low, high = np.full_like(turn, -1.0), np.full_like(turn, 1.0)
    for _ in range(60):  # bisection: the signed distance rises with the height
        middle = (low + high) / 2
        above = signed(middle) > 0
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    nodes, weights = np.polynomial.legendre.leggauss(48)
    total = np.zeros_like(turn)
    for start, end in ((np.full_like(turn, -1.0), low), (low, np.full_like(turn, 1.0))):
        u = start + (end - start) * (nodes[:, None] + 1) / 2
        total += (weights[:, None] * np.abs(signed(u))).sum(axis=0) * (end - start) / 2
    return float(total.mean() / 2)


def _positive_radius(r: float) -> float:
    if not 0 < r < math.inf:
        raise UserError(f"expected a shift r > 0, got {r}: 0 leaves the minimum where it is")
    return r


def _positive_count(count: int) -> int:
    if count < 1:
        raise UserError(f"expected 1 sample or more, got {count}: 10,000 are usual")
    return count


def _largest_root(p: Array, q: Array) -> Array:
    """Of u^3 + p u = q for q >= 0: Cardano's formula, then two steps of Newton's method."""
    discriminant = np.square(q / 2) + (p / 3) ** 3
    big = np.cbrt(q / 2 + np.sqrt(np.maximum(discriminant, 0)))
    one = big - np.divide(p, 3 * big, out=np.zeros_like(big), where=big > 0)
    size = np.sqrt(np.maximum(-p / 3, 0))
    ratio = np.divide(q / 2, size**3, out=np.ones_like(q), where=size > 0)
    three = 2 * size * np.cos(np.arccos(np.clip(ratio, -1, 1)) / 3)
    u = np.where(discriminant >= 0, one, three)
    for _ in range(2):
        slope = 3 * u * u + p
        u = u - np.divide(u**3 + p * u - q, slope, out=np.zeros_like(u), where=slope > 0)
    return np.asarray(u)
