"""Curves that planes cut out of a minimum of dimension 2 in a space of dimension 3 (Figure 9).

The minimum is z = 1/2 (k_1 x^2 + k_2 y^2), whose principal curvatures at w_0 = 0 are k_1 and k_2. A
plane through w_0 is spanned by a tangent direction u, at an angle phi to the first axis, and a
second direction that leans by alpha from the normal n towards n x u. The curve in it has at w_0

    kappa = |k_1 cos^2 phi + k_2 sin^2 phi| / cos alpha

(Euler's and Meusnier's theorems): of all planes with the same tangent only the one that holds the
normal shows the bend of the minimum alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch
from scipy.integrate import quad
from torch import Tensor

from metaopt.errors import UserError


@final
@dataclass(frozen=True)
class Section:
    """The curve of one plane.

    Attributes:
        principal: k_1 and k_2.
        angle: phi, radians.
        tilt: alpha, radians, -pi/2 < alpha < pi/2.
    """

    principal: tuple[float, float]
    angle: float
    tilt: float = 0.0

    def __post_init__(self) -> None:
        if not abs(self.tilt) < math.pi / 2:
            raise UserError(
                f"expected a tilt between -pi/2 and pi/2, got {self.tilt}: a tangent plane only "
                f"touches the minimum"
            )

    def point(self, t: Tensor) -> Tensor:
        """gamma(t), ``(3,)``, differentiable: t u + s v with the s that lies on the minimum.

        With v = (sin alpha) u' + (cos alpha) n, s is the root near 0 of a s^2 - b s + c = 0.
        """
        k1, k2 = self.principal
        u1, u2 = math.cos(self.angle), math.sin(self.angle)
        lean, rise = math.sin(self.tilt), math.cos(self.tilt)
        v1, v2 = -u2 * lean, u1 * lean
        a = (k1 * v1**2 + k2 * v2**2) / 2
        b = rise - (k1 * u1 * v1 + k2 * u2 * v2) * t
        c = (k1 * u1**2 + k2 * u2**2) / 2 * t.square()
        s = 2 * c / (b + (b.square() - 4 * a * c).sqrt())
        return torch.stack((t * u1 + s * v1, t * u2 + s * v2, s * rise))

    @property
    def curvature(self) -> float:
        """kappa at w_0, by the formula above."""
        k1, k2 = self.principal
        normal = k1 * math.cos(self.angle) ** 2 + k2 * math.sin(self.angle) ** 2
        return abs(normal) / math.cos(self.tilt)


def mean_over_normal_planes(principal: tuple[float, float]) -> float:
    """The mean of kappa over planes that hold the normal, phi uniform, by quadrature.

    |k_1 + k_2| / 2, the mean curvature, where k_1 k_2 >= 0; larger at a saddle, as kappa >= 0.
    """
    k1, k2 = principal
    flat = [math.atan(math.sqrt(-k1 / k2))] if k1 * k2 < 0 else []  # where kappa has a corner
    ends = [0.0, *flat, math.pi / 2]
    parts = [
        quad(lambda phi: Section(principal, phi).curvature, low, high, epsabs=1e-13)[0]
        for low, high in pairwise(ends)
    ]
    return float(2 * sum(parts) / math.pi)


def height(points: Tensor, principal: tuple[float, float]) -> Tensor:
    """Above the minimum along the third axis, ``(..., 3)`` -> ``(...)``: 0 on it."""
    k1, k2 = principal
    x, y, z = points.unbind(-1)
    return z - (k1 * x.square() + k2 * y.square()) / 2
