"""Families of losses of two variables that are symmetric under rotations (arXiv 2504.15399).

A member is L(w) = ||h(w)||^2 with a bijection h of the plane, so that

    g_theta . w = h^-1(R_theta h(w))

keeps the loss, and a level set is one orbit. With J = dh/dw the gradient is 2 J^T h. All members of
a batch, and many points of each, are worked on at once: points are ``(..., B, 2)``, float64.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self, final

import torch
from torch import Tensor

from metaopt.errors import UserError

HARMONICS = 4
"""On an orbit ||grad L||^2 is a trigonometric polynomial of the angle, of at most this degree."""

GRID = 64  # angles between which a maximum is refined


@dataclass(frozen=True, eq=False)
class Family2D(ABC):
    """B members of a family. Concrete families are final."""

    @classmethod
    @abstractmethod
    def drawn(cls, seeds: Sequence[int], starts: int = 1) -> tuple[Self, Tensor]:
        """One member a seed, each ``starts`` times, and as many points to start from, ``(B, 2)``.

        A seed always gives the same member and the same starts.
        """

    @abstractmethod
    def take(self, index: Tensor) -> Self:
        """Some members, in the order of ``index``, ``(B',)``."""

    @abstractmethod
    def h(self, w: Tensor) -> Tensor:
        """``(..., B, 2)``, which is 0 at the minimiser."""

    @abstractmethod
    def inverse(self, z: Tensor) -> Tensor:
        """h^-1, ``(..., B, 2)``."""

    @abstractmethod
    def jacobian(self, w: Tensor) -> Tensor:
        """J, ``(..., B, 2, 2)``."""

    @abstractmethod
    def hessian(self, w: Tensor) -> Tensor:
        """The Hessian of L, ``(..., B, 2, 2)``."""

    def loss(self, w: Tensor) -> Tensor:
        """The loss L, ``(..., B)``."""
        return self.h(w).square().sum(-1)

    def gradient(self, w: Tensor) -> Tensor:
        """2 J^T h, ``(..., B, 2)``."""
        return 2 * times(self.jacobian(w).mT, self.h(w))

    def steepness(self, w: Tensor) -> Tensor:
        """||grad L||^2, ``(..., B)``."""
        return self.gradient(w).square().sum(-1)

    def rotate(self, w: Tensor, angle: Tensor) -> Tensor:
        """g_theta . w; angles ``(..., B)``, radians."""
        return self.inverse(times(rotation(angle), self.h(w)))

    def steepest_angle(self, w: Tensor) -> Tensor:
        """The rotation to the steepest point of w's level set, ``(..., B)``, in [-pi, pi].

        Of equal maxima the nearest; 0 at the minimiser.
        """
        count = 2 * HARMONICS + 2
        at = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
        angles = at.reshape(-1, *(1,) * (w.dim() - 1)).expand(count, *w.shape[:-1])
        values = self.steepness(self.rotate(w.expand(count, *w.shape), angles))
        spectrum: Tensor = torch.fft.rfft(values, dim=0, norm="forward")[: HARMONICS + 1]
        spectrum = torch.cat((spectrum[:1], 2 * spectrum[1:]))  # a real function
        return torch.where(values.amax(0) > 0, _maximum(spectrum), 0.0)

    def steepest(self, w: Tensor) -> Tensor:
        """The steepest point of the level set of w, ``(..., B, 2)``."""
        return self.rotate(w, self.steepest_angle(w))


@final
@dataclass(frozen=True, eq=False)
class Ellipses(Family2D):
    """L = 1/2 (w - c)^T H (w - c), with h = (H/2)^(1/2) (w - c).

    Attributes:
        matrix: H, ``(B, 2, 2)``, symmetric and positive definite.
        center: c, ``(B, 2)``.

    Raises:
        UserError: for another H.
    """

    matrix: Tensor
    center: Tensor

    def __post_init__(self) -> None:
        h = self.matrix
        if not torch.equal(h, h.mT) or not bool((self.eigenvalues > 0).all()):
            raise UserError(
                "expected symmetric positive definite matrices, got one that is not: ellipses "
                "have such"
            )

    @classmethod
    def drawn(cls, seeds: Sequence[int], starts: int = 1) -> tuple[Self, Tensor]:
        """The axes at any angle; the larger eigenvalue from 1/2 to 2 and their ratio from 2 to 50,
        uniform in the logarithm; c in [-1, 1]^2; starts at a distance from 1 to 3 of c."""
        u = _uniform(seeds, 5 + 2 * starts)
        top, ratio = 0.5 * 4 ** u[:, 0], 2 * 25 ** u[:, 1]
        axes = rotation(math.pi * u[:, 2])
        half = axes @ torch.diag_embed(torch.stack((top, top / ratio), -1)) @ axes.mT
        center = 2 * u[:, 3:5] - 1
        polar = u[:, 5:].reshape(-1, starts, 2)
        turn = 2 * math.pi * polar[..., 1]
        away = (1 + 2 * polar[..., :1]) * torch.stack((turn.cos(), turn.sin()), -1)
        members = cls(
            ((half + half.mT) / 2).repeat_interleave(starts, 0),
            center.repeat_interleave(starts, 0),
        )
        return members, (center[:, None] + away).flatten(0, 1)

    def take(self, index: Tensor) -> Self:
        return type(self)(self.matrix[index], self.center[index])

    @cached_property
    def eigenvalues(self) -> Tensor:
        """The eigenvalues of H, rising, ``(B, 2)``."""
        values: Tensor = torch.linalg.eigvalsh(self.matrix)
        return values

    @cached_property
    def _root(self) -> Tensor:
        values, vectors = torch.linalg.eigh(self.matrix)
        root: Tensor = vectors @ torch.diag_embed((values / 2).sqrt()) @ vectors.mT
        return root

    @cached_property
    def _inverse_root(self) -> Tensor:
        inverse: Tensor = torch.linalg.inv(self._root)
        return inverse

    def h(self, w: Tensor) -> Tensor:
        return times(self._root, w - self.center)

    def inverse(self, z: Tensor) -> Tensor:
        return times(self._inverse_root, z) + self.center

    def jacobian(self, w: Tensor) -> Tensor:
        return self._root.expand(*w.shape, 2)

    def hessian(self, w: Tensor) -> Tensor:
        return self.matrix.expand(*w.shape, 2)


@final
@dataclass(frozen=True, eq=False)
class Rosenbrocks(Family2D):
    """L = (1 - x)^2 + b (y - x^2)^2, with h = (x - 1, sqrt(b) (y - x^2)).

    Attributes:
        b: ``(B,)``, positive.

    Raises:
        UserError: for another b.
    """

    b: Tensor

    def __post_init__(self) -> None:
        if not bool((self.b > 0).all()):
            raise UserError(f"expected b > 0, got {self.b.min().item()}: 100 is Rosenbrock's own")

    @classmethod
    def drawn(cls, seeds: Sequence[int], starts: int = 1) -> tuple[Self, Tensor]:
        """b from 1 to 20, uniform in the logarithm; starts in [-2, 2] x [-1, 3]."""
        u = _uniform(seeds, 1 + 2 * starts)
        corner = torch.tensor([-2.0, -1.0], dtype=torch.float64)
        members = cls((20 ** u[:, 0]).repeat_interleave(starts, 0))
        return members, corner + 4 * u[:, 1:].reshape(-1, 2)

    def take(self, index: Tensor) -> Self:
        return type(self)(self.b[index])

    def h(self, w: Tensor) -> Tensor:
        x, y = w.unbind(-1)
        return torch.stack((x - 1, self.b.sqrt() * (y - x * x)), -1)

    def inverse(self, z: Tensor) -> Tensor:
        x = z[..., 0] + 1
        return torch.stack((x, z[..., 1] / self.b.sqrt() + x * x), -1)

    def jacobian(self, w: Tensor) -> Tensor:
        x = w[..., 0]
        root = self.b.sqrt().expand(x.shape)
        first = torch.stack((torch.ones_like(x), torch.zeros_like(x)), -1)
        return torch.stack((first, torch.stack((-2 * root * x, root), -1)), -2)

    def hessian(self, w: Tensor) -> Tensor:
        x, y = w.unbind(-1)
        b = self.b.expand(x.shape)
        mixed = -4 * b * x
        first = torch.stack((2 - 4 * b * (y - 3 * x * x), mixed), -1)
        return torch.stack((first, torch.stack((mixed, 2 * b), -1)), -2)


FAMILIES_2D: dict[str, type[Family2D]] = {"ellipse": Ellipses, "rosenbrock": Rosenbrocks}
"""By name."""


def rotation(angle: Tensor) -> Tensor:
    """R_theta, ``(..., 2, 2)``."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((torch.stack((cos, -sin), -1), torch.stack((sin, cos), -1)), -2)


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """``(..., 2, 2)`` by ``(..., 2)``, entry by entry: for so small ones faster than a product."""
    return (matrix * vector.unsqueeze(-2)).sum(-1)


def _uniform(seeds: Sequence[int], count: int) -> Tensor:
    """``(len(seeds), count)`` in [0, 1), each row from its own seed."""
    if not seeds:
        raise UserError("expected at least 1 seed, got none: one member is drawn a seed")
    rows = [
        torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in seeds
    ]
    return torch.stack(rows)


def _maximum(spectrum: Tensor) -> Tensor:
    """Where Re sum_k c_k e^(i k a) is largest, in [-pi, pi]; c ``(K + 1, ...)`` -> ``(...)``.

    Each local maximum on a grid is refined by Newton's method; of K harmonics there are at most K.
    """
    orders = torch.arange(len(spectrum), dtype=torch.float64)
    grid = -math.pi + 2 * math.pi / GRID * torch.arange(GRID, dtype=torch.float64)
    waves = torch.exp(1j * grid[:, None] * orders)
    values = torch.tensordot(waves, spectrum, 1).real  # (GRID, ...)
    peak = (values >= values.roll(1, 0)) & (values >= values.roll(-1, 0))
    best = torch.where(peak, values, -torch.inf).topk(HARMONICS, 0)
    angle = grid[best.indices]

    def value(coefficients: Tensor) -> Tensor:
        """Compute the polynomial by Horner's rule at ``angle``."""
        wave = torch.exp(1j * angle)
        total = coefficients[-1].expand(angle.shape)
        for c in reversed(coefficients[:-1]):
            total = total * wave + c
        return total.real

    factors = 1j * orders.reshape(-1, *(1,) * (spectrum.dim() - 1))
    once, twice = factors * spectrum, factors.square() * spectrum
    for _ in range(5):
        slope, bend = value(once), value(twice)
        step = torch.where(bend < 0, -slope / bend.clamp(max=-1e-300), 0.0)
        angle = angle + step.clamp(-math.pi / GRID, math.pi / GRID)
    reached = torch.where(best.values.isfinite(), value(spectrum), -torch.inf)
    top = reached.amax(0)
    angle = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
    far = torch.where(reached >= top - 1e-12 * top.abs(), angle.abs(), torch.inf)
    return angle.gather(0, far.argmin(0, keepdim=True))[0]
