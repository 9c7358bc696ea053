"""The input of a layer, samples in columns, with what is computed from it once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

MAX_CONDITION = 1e8  # of a matrix that QR inverts: what is lost to rounding is below 1e-8

MAX_SIZE = 1e50  # Frobenius norm of W and h above which float64 products could overflow


class Eigen(NamedTuple):
    """The eigenvalues of a matrix, none below 0, and its eigenvectors; of I if it is not finite.

    Attributes:
        values: ascending, ``(*batch, n)``.
        vectors: as columns, ``(*batch, n, n)``.
    """

    values: Tensor
    vectors: Tensor


class LayerInput:
    """The input h of a layer, with its pseudo-inverse, which is computed once.

    Keep the object while h stays the same, so that the pseudo-inverse is reused.

    Args:
        h: ``(*batch, features, samples)``, a sample a column.

    Attributes:
        original: h as it was given.
        finite: ``(*batch,)`` bool, which tasks have a usable h.
        h: h in float64, with zeros for tasks that are not ``finite``.
    """

    def __init__(self, h: Tensor) -> None:
        self.original = h
        self.finite = sound(h)
        one = h.dim() == 2  # what is given must not change with h, so it is copied either way
        wide = h.to(torch.float64, copy=one, memory_format=torch.contiguous_format)
        sound_alone = one and bool(self.finite)
        self.h = wide if sound_alone else torch.where(self.finite[..., None, None], wide, 0.0)
        self._products: dict[str, tuple[Sequence[Tensor], Tensor]] | None = None

    @cached_property
    @torch.inference_mode(False)  # what is kept must serve callers outside it too
    def with_ones(self) -> LayerInput:
        """The input with a row of ones below, which multiplies the bias."""
        return LayerInput(torch.cat((self.h, torch.ones_like(self.h[..., :1, :])), dim=-2))

    @cached_property
    def alone(self) -> LayerInput:
        """The input of the one task that there is, without dimensions that count tasks."""
        return LayerInput(self.original.reshape(self.original.shape[-2:]))

    @cached_property
    def pseudo_inverse(self) -> Tensor:
        """The pseudo-inverse h^+, ``(*batch, samples, features)``."""
        return pseudo_inverse(self.h)

    @cached_property
    @torch.inference_mode(False)
    def moment(self) -> Eigen:
        """The second moments h h^T, decomposed."""
        return eigen(self.h @ self.h.mT)

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Let :meth:`product` keep what it computed, inside a ``with`` block.

        Nobody may write into the weights meanwhile.
        """
        self._products = {}
        try:
            yield
        finally:
            self._products = None

    def product(self, name: str, stored: Sequence[Tensor], compute: Callable[[], Tensor]) -> Tensor:
        """Return W h, which may be kept from the last time.

        Args:
            name: of W.
            stored: the tensors that hold W; other tensors are other weights.
            compute: a function that returns W h.
        """
        kept = (self._products or {}).get(name)
        if kept is not None and all(a is b for a, b in zip(kept[0], stored, strict=True)):
            return kept[1]
        product = compute()
        self.keep_product(name, stored, product)
        return product

    def keep_product(self, name: str, stored: Sequence[Tensor], product: Tensor) -> None:
        """Keep W h, if this input remembers, and if no gradient will be asked of it."""
        if self._products is not None and not product.requires_grad:
            self._products[name] = stored, product


def pseudo_inverse(matrix: Tensor) -> Tensor:
    """Return the pseudo-inverse of a matrix ``(*batch, m, n)``, as ``(*batch, n, m)``.

    One matrix of full rank that needs no gradient is factored by QR, which takes a fifth of the
    time of a singular value decomposition.

    Args:
        matrix: the matrix.
    """
    if matrix.dim() == 2 and not matrix.requires_grad:
        tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT
        q, r = torch.linalg.qr(tall)
        identity = torch.eye(r.shape[-1], dtype=r.dtype, device=r.device)
        solved = torch.linalg.solve_triangular(r, identity, upper=True)
        if torch.linalg.vector_norm(r) * torch.linalg.vector_norm(solved) < MAX_CONDITION:
            short: Tensor = solved @ q.mT
            return short if tall is matrix else short.mT
    inverse: Tensor = torch.linalg.pinv(matrix)
    return inverse


def eigen(matrix: Tensor) -> Eigen:
    """Return symmetric matrices that have no eigenvalue below 0, decomposed.

    Args:
        matrix: ``(*batch, n, n)``.
    """
    # On the CPU to look is cheap; elsewhere the host would wait.
    if matrix.device.type != "cpu" or not math.isfinite(matrix.sum().item()):
        finite = matrix.isfinite().all(dim=-1).all(dim=-1)[..., None, None]
        identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        matrix = torch.where(finite, matrix, identity)
    values, vectors = torch.linalg.eigh(matrix)
    return Eigen(values.clamp_(min=0.0), vectors)


def sound(matrix: Tensor) -> Tensor:
    """Return whether a matrix is free of NaN and of overflowing products, ``(*batch,)`` bool."""
    size: Tensor = torch.linalg.vector_norm(matrix.detach(), dim=(-2, -1))
    return size < MAX_SIZE  # NaN: False
