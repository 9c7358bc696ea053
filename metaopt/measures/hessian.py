"""Sharpness from the largest eigenvalues of the Hessian (eqs. 94 and 95)."""

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
from metaopt.symmetry.functional import (
    LossOnBatch,
    NetworkLoss,
    check_differentiable_twice,
    evaluating,
    module_loss,
    second_derivatives,
)
from metaopt.symmetry.nested import Inputs
from metaopt.symmetry.objectives import LossFunction
from metaopt.wrappers import unwrapped

DENSE = 200
"""The largest number of parameters for which the whole Hessian is computed."""


class Hessian:
    """The Hessian of a loss at given parameters, known by its products with vectors.

    Args:
        loss: a function from a list of parameters to a scalar, twice differentiable.
        parameters: where the Hessian is taken, in the order of the list.

    Attributes:
        size: the number of entries of all parameters, which is the number of rows.

    Raises:
        UserError: for a loss that is not a finite scalar, or that torch cannot differentiate twice;
            a product may raise it too.
    """

    def __init__(self, loss: LossFunction, parameters: Sequence[Tensor]) -> None:
        self._own = [p.detach().requires_grad_() for p in parameters]
        self._model = loss.model if isinstance(loss, NetworkLoss) else None
        with torch.enable_grad(), second_derivatives(self._model):
            value = loss(self._own)
            check_differentiable_twice(value, self._own)
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
        """Multiply the Hessian with a vector.

        Args:
            vector: ``(size,)``.

        Returns:
            H v, ``(size,)``.
        """
        if not self._gradient.requires_grad:  # a linear loss
            return torch.zeros_like(vector)
        with second_derivatives(self._model):
            products = torch.autograd.grad(
                self._gradient, self._own, vector, retain_graph=True, allow_unused=True
            )
        flat = [
            torch.zeros_like(own).flatten() if p is None else p.flatten()
            for p, own in zip(products, self._own, strict=True)
        ]
        return torch.cat(flat)

    def dense(self) -> NDArray[np.float64]:
        """Compute the whole matrix, float64 ``(size, size)``, by a product for each row."""
        like = self._gradient.detach()
        rows = [self.product(row) for row in torch.eye(self.size).to(like)]
        matrix: NDArray[np.float64] = torch.stack(rows).double().cpu().numpy()
        return (matrix + matrix.T) / 2

    def largest(self, count: int, seed: int = 0, tolerance: float = 1e-6) -> NDArray[np.float64]:
        """Compute the algebraically largest eigenvalues, in falling order.

        A Hessian of at most 200 rows is computed whole. Larger ones go through Lanczos iterations
        (``scipy.sparse.linalg.eigsh``), which need the extra ``report``.

        Args:
            count: how many eigenvalues.
            seed: draws the vector that the iterations start from.
            tolerance: relative accuracy of the iterations.

        Returns:
            float64 ``(count,)``.

        Raises:
            UserError: for a count below 1 or above the number of parameters, without scipy, or if
                the iterations do not converge.
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
        """Count the eigenvalues above a threshold: phi_1 of eq. 94.

        More and more eigenvalues are computed, twice as many each time, until one is not above it.

        Args:
            threshold: what the eigenvalues are compared with.
            seed: see :meth:`largest`.
            at_most: where to stop counting; by default at the number of parameters.

        Raises:
            UserError: for a threshold of NaN, or an ``at_most`` below 1.
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
        """Sum the logarithms of the largest eigenvalues: phi_2 of eq. 95.

        Args:
            count: how many eigenvalues.
            seed: see :meth:`largest`.

        Returns:
            The sum; NaN if one of them is not positive.
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


def hessian(model: nn.Module, loss_fn: LossOnBatch, x: Inputs, y: Any = None) -> Hessian:
    """Make the Hessian of a network's loss on a batch, in all parameters that need a gradient.

    Args:
        model: any module; it is called in evaluation mode.
        loss_fn: (what the model gives, y) -> scalar.
        x: what the model is called with: a tensor of samples, a tuple of arguments or a mapping.
        y: the targets; None where the model computes its loss.

    Raises:
        UserError: for a model without such parameters, a loss that is not finite, or an operation
            that torch cannot differentiate twice.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double()
        >>> x, y = torch.rand(6, 4).double(), torch.rand(6, 1).double()
        >>> h = hessian(model, nn.MSELoss(), x, y)
        >>> h.size, h.largest(2).shape
        (19, (2,))
    """
    with evaluating(unwrapped(model)):
        parameters, loss = module_loss(model, loss_fn, x, y)
        if not parameters:
            raise UserError(
                "expected a model with parameters that need a gradient, got none: unfreeze some"
            )
        return Hessian(loss, parameters)
