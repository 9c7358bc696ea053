"""What the layers of a site are given: features in columns, and what is computed from them once."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

MAX_SIZE = 1e50  # Frobenius norm of W and h above which float64 products could overflow


class LayerInput:
    """The input h of a layer, with what is computed from it once.

    Keep the object while h stays the same: the pseudo-inverse is made once and reused.

    Args:
        h: ``(*batch, features, samples)``, a sample a column.

    Attributes:
        original: h as it was given.
        finite: which tasks have a usable h, ``(*batch,)`` bool.
        h: h in float64, with zeros for tasks that are not ``finite``.
    """

    def __init__(self, h: Tensor) -> None:
        self.original = h
        self.finite = sound(h)
        self.h = torch.where(self.finite[..., None, None], h.double(), 0.0)

    @cached_property
    def with_ones(self) -> LayerInput:
        """The input with a row of ones below, which carries the bias."""
        return LayerInput(torch.cat((self.h, torch.ones_like(self.h[..., :1, :])), dim=-2))

    @cached_property
    def pseudo_inverse(self) -> Tensor:
        """The pseudo-inverse h^+, ``(*batch, samples, features)``."""
        inverse: Tensor = torch.linalg.pinv(self.h)
        return inverse


def sound(matrix: Tensor) -> Tensor:
    """Return where a matrix has no NaN and nothing whose products overflow, ``(*batch,)`` bool."""
    size: Tensor = torch.linalg.vector_norm(matrix.detach(), dim=(-2, -1))
    return size < MAX_SIZE  # NaN: False
