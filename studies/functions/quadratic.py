"""Functions of a few variables whose constants, minimisers and level sets are known.

Each is called with w ``(n,)``, float64, and returns a scalar; it is written with torch's functions,
so that it can be differentiated any number of times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from metaopt.errors import UserError


@final
@dataclass(frozen=True, eq=False)
class Quadratic:
    """L(w) = 1/2 (w - w*)^T H (w - w*) + L*.

    Attributes:
        matrix: H, ``(n, n)``, symmetric and positive definite.
        minimizer: w*, ``(n,)``.
        lowest: L*.

    Raises:
        UserError: for an H that is not symmetric and positive definite.
    """

    matrix: Tensor
    minimizer: Tensor
    lowest: float = 0.0

    def __post_init__(self) -> None:
        h = self.matrix
        symmetric = h.dim() == 2 and bool(h.isfinite().all()) and torch.equal(h, h.mT)
        if not symmetric or not bool((self.eigenvalues > 0).all()):
            raise UserError(
                f"expected a symmetric positive definite matrix, got one of shape "
                f"{tuple(h.shape)} that is not: a strictly convex quadratic has one"
            )

    @property
    def eigenvalues(self) -> Tensor:
        """The eigenvalues of H, rising."""
        values: Tensor = torch.linalg.eigvalsh(self.matrix)
        return values

    @property
    def beta(self) -> float:
        """The smoothness constant: the largest eigenvalue."""
        return float(self.eigenvalues[-1])

    @property
    def mu(self) -> float:
        """The constant of strong convexity, and of the PL inequality: the smallest eigenvalue."""
        return float(self.eigenvalues[0])

    def __call__(self, w: Tensor) -> Tensor:
        """L(w)."""
        shifted = w - self.minimizer
        value: Tensor = 0.5 * shifted @ (self.matrix @ shifted) + self.lowest
        return value

    def largest_squared_gradient(self, level: Tensor | float) -> Tensor:
        """max ||grad L||^2 on the level set {L = level}: 2 beta (level - L*)."""
        above: Tensor = torch.as_tensor(level, dtype=torch.float64) - self.lowest
        return above * (2 * self.beta)

    def steepest_point(self, level: float) -> Tensor:
        """Where the maximum is attained: along the eigenvector of the largest eigenvalue."""
        _, vectors = torch.linalg.eigh(self.matrix)
        length = math.sqrt(2 * (level - self.lowest) / self.beta)
        point: Tensor = self.minimizer + length * vectors[:, -1]
        return point


def ellipse(ratio: float = 5.0) -> Quadratic:
    """1/2 (w_1^2 + ratio^2 w_2^2), as in appendix D."""
    diagonal = torch.tensor([1.0, ratio**2], dtype=torch.float64)
    return Quadratic(torch.diag(diagonal), torch.zeros(2, dtype=torch.float64))


def booth() -> Quadratic:
    """(w_1 + 2 w_2 - 7)^2 + (2 w_1 + w_2 - 5)^2, whose minimum 0 is at (1, 3)."""
    matrix = torch.tensor([[10.0, 8.0], [8.0, 10.0]], dtype=torch.float64)
    return Quadratic(matrix, torch.tensor([1.0, 3.0], dtype=torch.float64))


def random_quadratic(n: int, condition: float, generator: torch.Generator) -> Quadratic:
    """Draw one with eigenvalues from 1 to ``condition``, evenly in the logarithm, and turn it."""
    if n < 1 or not condition >= 1:
        raise UserError(
            f"expected n of 1 or more and a condition number of 1 or more, got {n} and {condition}"
        )
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    values = torch.logspace(0, torch.log10(torch.tensor(condition)).item(), n, dtype=torch.float64)
    matrix = q @ torch.diag(values) @ q.mT
    return Quadratic((matrix + matrix.mT) / 2, torch.zeros(n, dtype=torch.float64))
