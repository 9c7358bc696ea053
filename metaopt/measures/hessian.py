"""Sharpness from the Hessian: its largest eigenvalues (eqs. 94, 95), by Hessian-vector products."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metaopt.errors import UserError
from metaopt.extras import extra
from metaopt.symmetry.loss import LossOnBatch
from metaopt.symmetry.mode import evaluating
from metaopt.symmetry.module_level_set import module_loss
from metaopt.symmetry.objectives import LossFunction

DENSE = 200
"""Up to so many parameters the whole Hessian is made; Lanczos finds only fewer than all."""


class Hessian:
    """Of a loss at some parameters, by its products with vectors.

    Args:
        loss: a scalar function of the parameters, twice differentiable there.
        parameters: in order.

    Raises:
        UserError: for a loss that is not a finite scalar.
    """

    def __init__(self, loss: LossFunction, parameters: Sequence[Tensor]) -> None:
        self._own = [p.detach().requires_grad_() for p in parameters]
        with torch.enable_grad():
            value = loss(self._own)
            if value.dim() or not value.isfinite():
                raise UserError(
                    f"expected a finite scalar loss, got {value.tolist()}: measure one network "
                    f"that has not diverged at a time"
                )
            slopes = torch.autograd.grad(
                value, self._own, create_graph=True, allow_unused=True, materialize_grads=True
            )
        self._gradient = torch.cat([slope.flatten() for slope in slopes])
        self.size = self._gradient.numel()

    def product(self, vector: Tensor) -> Tensor:
        """H v, ``(size,)``."""
        if not self._gradient.requires_grad:  # a linear loss
            return torch.zeros_like(vector)
        products = torch.autograd.grad(
            self._gradient, self._own, vector, retain_graph=True, allow_unused=True
        )
        flat = [
            torch.zeros_like(own).flatten() if p is None else p.flatten()
            for p, own in zip(products, self._own, strict=True)
        ]
        return torch.cat(flat)

    def dense(self) -> NDArray[np.float64]:
        """The whole matrix, ``(size, size)``."""
        like = self._gradient.detach()
        rows = [self.product(row) for row in torch.eye(self.size).to(like)]
        matrix: NDArray[np.float64] = torch.stack(rows).double().cpu().numpy()
        return (matrix + matrix.T) / 2

    def largest(self, count: int, seed: int = 0, tolerance: float = 1e-6) -> NDArray[np.float64]:
        """The ``count`` algebraically largest eigenvalues, in falling order.

        From the whole matrix where it has at most 200 rows, else by Lanczos iterations, which
        need the extra ``report`` (``scipy.sparse.linalg.eigsh``).

        Args:
            seed: of the vector that the iterations start from.
            tolerance: relative.

        Raises:
            UserError: for a count below 1 or above the number of parameters, or without scipy.
        """
        if not 1 <= count <= self.size:
            raise UserError(
                f"expected from 1 to {self.size} eigenvalues, as many as parameters, got {count}: "
                f"choose another number"
            )
        if self.size <= max(DENSE, count + 1):
            values = _eigenvalues(self.dense())
            return np.asarray(values[::-1][:count], dtype=np.float64)
        like = self._gradient.detach()

        def apply(v: NDArray[np.float64]) -> NDArray[np.float64]:
            vector = torch.from_numpy(np.ascontiguousarray(v).reshape(-1)).to(like)
            result: NDArray[np.float64] = self.product(vector).double().cpu().numpy()
            return result

        start = np.random.default_rng(seed).standard_normal(self.size)
        if not apply(start).any():
            return np.zeros(count)
        values = _lanczos(
            apply,
            start,
            k=count,
            which="LA",
            tol=tolerance,
            ncv=min(self.size, max(2 * count + 1, 20)),
            return_eigenvectors=False,
        )
        return np.asarray(np.sort(values)[::-1], dtype=np.float64)

    def count_above(self, threshold: float, seed: int = 0, at_most: int | None = None) -> int:
        """phi_1: how many eigenvalues are larger than ``threshold`` (eq. 94).

        Asks for twice as many eigenvalues until one is not larger.

        Args:
            at_most: where to stop counting; the number of parameters by default.
        """
        if math.isnan(threshold):
            raise UserError("expected a threshold that is a number, got nan: 0.1 is usual")
        if at_most is not None and at_most < 1:
            raise UserError(
                f"expected at_most of 1 or more, got {at_most}: leave it out to count all"
            )
        limit = min(self.size, self.size if at_most is None else at_most)
        count = min(16, limit)
        while True:
            above = int((self.largest(count, seed) > threshold).sum())
            if above < count or count == limit:
                return above
            count = min(2 * count, limit)

    def log_product(self, count: int, seed: int = 0) -> float:
        """phi_2: the sum of the logarithms of the ``count`` largest eigenvalues (eq. 95).

        NaN where one of them is not positive.
        """
        values = self.largest(count, seed)
        return float(np.log(values).sum()) if (values > 0).all() else math.nan


def _eigenvalues(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    if not np.isfinite(matrix).all():
        raise UserError(
            "expected a finite Hessian, got NaN or infinity: measure a network that has not "
            "diverged, or one of float64"
        )
    return np.asarray(np.linalg.eigvalsh(matrix), dtype=np.float64)


def _lanczos(
    apply: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    start: NDArray[np.float64],
    **options: Any,
) -> Any:
    with extra("report"):
        from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
    operator = LinearOperator((start.size, start.size), matvec=apply, dtype=np.float64)
    try:
        return eigsh(operator, v0=start, **options)
    except ArpackError as error:
        raise UserError(
            f"expected eigenvalues to converge, got none of a count of {options['k']} ({error}): "
            f"ask for others, or allow a larger tolerance"
        ) from None


def hessian(model: nn.Module, loss_fn: LossOnBatch, x: Tensor, y: Tensor) -> Hessian:
    """Of a network's loss on a batch in all parameters that need a gradient, in evaluation mode.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double()
        >>> x, y = torch.rand(6, 4).double(), torch.rand(6, 1).double()
        >>> h = hessian(model, nn.MSELoss(), x, y)
        >>> h.size, h.largest(2).shape
        (19, (2,))
    """
    with evaluating(model):
        parameters, loss = module_loss(model, loss_fn, x, y)
        if not parameters:
            raise UserError(
                "expected a model with parameters that need a gradient, got none: unfreeze some"
            )
        return Hessian(loss, parameters)
