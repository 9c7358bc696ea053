"""Rotations as symmetries: orbits that are spheres in coordinates h(w), and their steepest points.

Where L(w) = q(|h(w)|) with a bijection h, each g.w = h^-1(R h(w)) with a rotation R leaves L as it
is (eq. 2), and the orbits are the sets |h| = r. They are closed and bounded, so that
max_g ||grad L(g.w)||^2 exists. With h linear it has a closed form; this holds for quadratics,
whose h is H^1/2 (w - w*).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from metaopt.errors import UserError
from studies.functions.quadratic import Quadratic
from studies.geometry.steepest import BatchedFunction, batched_gradient, largest_on_circles


@final
class EllipticOrbits:
    """g.w = w* + A^-1 R A (w - w*): a symmetry of every L(w) = q(|A (w - w*)|).

    With r = |A (w - w*)| and u = A (w - w*) / r the gradient is q'(r) A^T u. On an orbit r is
    constant, so that ||grad L||^2 is largest where A^T stretches u most, whatever q is.

    Args:
        matrix: A, ``(n, n)``, invertible.
        center: w*, ``(n,)``.
        slope: q', of ``(*batch,)``; r -> r for a quadratic.

    Raises:
        UserError: for an A that cannot be inverted: its orbits are unbounded.
    """

    def __init__(self, matrix: Tensor, center: Tensor, slope: BatchedFunction) -> None:
        self.matrix, self.center, self.slope = matrix, center, slope
        left, singular, _ = torch.linalg.svd(matrix)  # A A^T = left diag(singular^2) left^T
        if not bool(singular[-1] > 1e-12 * singular[0]):
            raise UserError(
                f"expected an invertible A, got singular values from {float(singular[0]):g} to "
                f"{float(singular[-1]):g}: the orbits are bounded only then"
            )
        self.singular = singular
        """Of A, falling, ``(n,)``."""
        self.inverse = torch.linalg.inv(matrix)
        self._top, self._bottom = left[:, 0], left[:, -1]

    def to_sphere(self, w: Tensor) -> Tensor:
        """A (w - w*), ``(*batch, n)``."""
        z: Tensor = (w - self.center) @ self.matrix.mT
        return z

    def from_sphere(self, z: Tensor) -> Tensor:
        """w* + A^-1 z, ``(*batch, n)``."""
        w: Tensor = self.center + z @ self.inverse.mT
        return w

    def radius(self, w: Tensor) -> Tensor:
        """r, which names the orbit, ``(*batch,)``."""
        r: Tensor = self.to_sphere(w).norm(dim=-1)
        return r

    def move(self, w: Tensor, rotation: Tensor) -> Tensor:
        """g.w, ``(*batch, n)``, for an orthogonal R ``(n, n)``."""
        return self.from_sphere(self.to_sphere(w) @ rotation.mT)

    def steepest(self, w: Tensor) -> Tensor:
        """The nearer of the two points of the orbit with the largest gradient, ``(*batch, n)``."""
        return self._along(w, self._top)

    def flattest(self, w: Tensor) -> Tensor:
        """Return the points with the smallest gradient; these are the farthest from w*."""
        return self._along(w, self._bottom)

    def _along(self, w: Tensor, direction: Tensor) -> Tensor:
        z = self.to_sphere(w)
        sign = torch.where(z @ direction < 0, -1.0, 1.0).double()
        return self.from_sphere((sign * z.norm(dim=-1)).unsqueeze(-1) * direction)

    def largest(self, w: Tensor) -> Tensor:
        """max_g ||grad L(g.w)||^2 = (q'(r) s_max(A))^2, ``(*batch,)``."""
        steepness: Tensor = (self.slope(self.radius(w)) * self.singular[0]).square()
        return steepness

    def farthest(self, w: Tensor) -> Tensor:
        """max_g ||g.w - w*|| = r / s_min(A), ``(*batch,)``."""
        distance: Tensor = self.radius(w) / self.singular[-1]
        return distance


def quadratic_orbits(quadratic: Quadratic) -> EllipticOrbits:
    """Return the orbits of a quadratic, A = H^1/2: its level sets, one orbit each."""
    values, vectors = torch.linalg.eigh(quadratic.matrix)
    root = vectors @ torch.diag(values.sqrt()) @ vectors.mT
    return EllipticOrbits((root + root.mT) / 2, quadratic.minimizer, lambda r: r)


@final
@dataclass(frozen=True, eq=False)
class RadialFamily:
    """L(w) = q(|h(w)|^2) with a bijection h of R^n; steepest points in two dimensions.

    Attributes:
        profile: q as a function of r^2 ``(*batch,)``, so that it can be smooth at r = 0.
        forward: h, of ``(*batch, n)``.
        inverse: h^-1.
    """

    profile: BatchedFunction
    forward: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]

    def __call__(self, w: Tensor) -> Tensor:
        """L, ``(*batch,)``."""
        return self.profile(self.forward(w).square().sum(-1))

    def gradient(self, w: Tensor) -> Tensor:
        """dL/dw, ``(*batch, n)``."""
        return batched_gradient(self, w)

    def pull_back(self, w: Tensor, v: Tensor) -> Tensor:
        """J^T v with J = dh/dw: the gradient of h(w).v with v held, ``(*batch, n)``."""
        return batched_gradient(lambda x: (self.forward(x) * v).sum(-1), w)

    def move(self, w: Tensor, rotation: Tensor) -> Tensor:
        """g.w = h^-1(R h(w)), ``(*batch, n)``."""
        return self.inverse(self.forward(w) @ rotation.mT)

    def circle(self, angles: Tensor, radii: Tensor) -> Tensor:
        """h^-1(r (cos, sin)), ``(*batch, 2)``."""
        return self.inverse(torch.stack([radii * angles.cos(), radii * angles.sin()], -1))

    def steepness(self, angles: Tensor, radii: Tensor) -> Tensor:
        """||grad L||^2 on the circles, ``(*batch,)``."""
        return self.gradient(self.circle(angles, radii)).square().sum(-1)

    def steepest(self, w: Tensor, grid: int = 128) -> Tensor:
        """A point of largest ||grad L||^2 on the orbit of each w, ``(m, 2)`` -> ``(m, 2)``.

        Raises:
            UserError: for another number of dimensions than 2, or where the gradient is not finite.
        """
        if w.dim() != 2 or w.shape[-1] != 2:
            raise UserError(
                f"expected points of shape (m, 2), got {tuple(w.shape)}: in more dimensions take a "
                f"linear h (EllipticOrbits)"
            )
        radii = self.forward(w).norm(dim=-1)
        return self.circle(largest_on_circles(self.steepness, radii, grid).where, radii)
