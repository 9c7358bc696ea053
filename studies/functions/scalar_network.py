"""The network v sigma(u x) with two weights, whose minimum is a hyperbola (Figures 2 and 3).

For u > 0 the loss is L(u, v) = 1/2 ||y - u v a||^2 with a = sigma(x), so that with S = ||a||^2 and
c = a.y / S it is S/2 (u v - c)^2 + L*. Rescaling u -> g u, v -> v / g moves along the minimum
gamma = {u v = c}. At its point (u, v)

    sharpness  lambda = S (u^2 + v^2), the Hessian's only eigenvalue that is not 0,
    curvature  kappa = 2 c / (u^2 + v^2)^(3/2) = 2 c (S / lambda)^(3/2),

so a sharper point is less curved. Gradient flow keeps u^2 - v^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metaopt.errors import UserError
from metaopt.symmetry import LeakyReLU

Array = NDArray[np.float64]


@final
@dataclass(frozen=True, eq=False)
class ScalarNetwork:
    """The network v sigma(u x) of two weights on data (x, y).

    Attributes:
        x: inputs, ``(n,)``.
        y: targets, ``(n,)``; those that give c > 0.
        slope: of LeakyReLU on the negative side.

    Raises:
        UserError: for c <= 0, which leaves no branch of the hyperbola with u, v > 0.
    """

    x: Tensor
    y: Tensor
    slope: float = 0.1

    def __post_init__(self) -> None:
        if not self.product > 0:
            raise UserError(
                f"expected targets with a.y > 0, got c = {self.product}: the minimum is studied "
                f"where u, v > 0"
            )

    @classmethod
    def fitted(cls, x: Tensor, product: float, slope: float = 0.1) -> ScalarNetwork:
        """Make one with targets that u v = ``product`` fits, so that L* = 0."""
        return cls(x, product * LeakyReLU(slope)(x), slope)

    def __call__(self, w: Tensor) -> Tensor:
        """L at w = (u, v), ``(2,)`` or ``(..., 2)`` -> ``(...)``."""
        u, v = w[..., :1], w[..., 1:]
        residual = self.y - v * LeakyReLU(self.slope)(u * self.x)
        return residual.square().sum(-1) / 2

    @property
    def features(self) -> Tensor:
        """The features a = sigma(x), ``(n,)``."""
        return LeakyReLU(self.slope)(self.x)

    @property
    def size(self) -> float:
        """The size S = ||a||^2 of the features."""
        return float(self.features.square().sum())

    @property
    def product(self) -> float:
        """The product c = u v of the weights on the minimum."""
        return float(self.features @ self.y) / self.size

    @property
    def lowest(self) -> float:
        """The lowest loss L*."""
        return float((self.y - self.product * self.features).square().sum() / 2)

    def minimizer(self, g: float) -> Tensor:
        """(g sqrt c, sqrt c / g): the balanced point, rescaled by g > 0."""
        root = math.sqrt(self.product)
        return torch.tensor([g * root, root / g], dtype=torch.float64)

    def sharpness(self, w: Tensor) -> float:
        """Return the sharpness lambda at a point of the minimum."""
        return self.size * float(w.square().sum())

    def curvature(self, w: Tensor) -> float:
        """Return the curvature kappa at a point of the minimum."""
        return 2 * self.product / math.pow(float(w.square().sum()), 1.5)

    def flow_end(self, w: Tensor) -> Tensor:
        """Where gradient flow from w, u, v > 0, ends: on the minimum, with the same u^2 - v^2."""
        difference = float(w[0] ** 2 - w[1] ** 2)
        u_squared = (difference + math.hypot(difference, 2 * self.product)) / 2
        u = math.sqrt(u_squared)
        return torch.tensor([u, self.product / u], dtype=torch.float64)

    def flow_start(self, end: Tensor, product: float) -> Tensor:
        """The point with u v = ``product`` from where the flow ends at ``end``."""
        difference = float(end[0] ** 2 - end[1] ** 2)
        u = math.sqrt((difference + math.hypot(difference, 2 * product)) / 2)
        return torch.tensor([u, product / u], dtype=torch.float64)

    def mean_rise(self, w: Tensor, r: float) -> float:
        """Return the mean rise of the loss at w on the minimum, when the landscape is shifted by r.

        Over directions drawn uniformly it is r^2 lambda / 4 + S r^4 / 16.
        """
        return r**2 * self.sharpness(w) / 4 + self.size * r**4 / 16


def distance_to_hyperbola(w: Array, product: float) -> float:
    """From w = (u, v) to the branch {u' v' = product, u' > 0}.

    The nearest u' solves u'^4 - u u'^3 + product v u' - product^2 = 0.
    """
    if not product > 0:
        raise UserError(f"expected a product > 0, got {product}: the other branches are not u, v>0")
    u, v = float(w[0]), float(w[1])
    equation = np.array([1.0, -u, 0.0, product * v, -(product**2)])
    roots = np.roots(equation)
    near = roots.real[roots.real > 0]  # the real part of a complex root is a point like others
    slope = np.polyder(equation)
    for _ in range(2):
        rate = np.polyval(slope, near)
        step = np.polyval(equation, near) / np.where(rate == 0, np.inf, rate)
        near = np.where(near > step, near - step, near)
    return float(np.hypot(near - u, product / near - v).min())
