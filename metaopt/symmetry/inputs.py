"""The input of a layer, samples in columns, with what is computed from it once."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

MAX_SIZE = 1e50  # Frobenius norm of W and h above which float64 products could overflow


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
        self.h = torch.where(self.finite[..., None, None], h.double(), 0.0)

    @cached_property
    def with_ones(self) -> LayerInput:
        """The input with a row of ones below, which multiplies the bias."""
        return LayerInput(torch.cat((self.h, torch.ones_like(self.h[..., :1, :])), dim=-2))

    @cached_property
    def pseudo_inverse(self) -> Tensor:
        """The pseudo-inverse h^+, ``(*batch, samples, features)``."""
        inverse: Tensor = torch.linalg.pinv(self.h)
        return inverse


def sound(matrix: Tensor) -> Tensor:
    """Return whether a matrix is free of NaN and of overflowing products, ``(*batch,)`` bool."""
    size: Tensor = torch.linalg.vector_norm(matrix.detach(), dim=(-2, -1))
    return size < MAX_SIZE  # NaN: False
