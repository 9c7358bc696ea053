"""From the Lie algebra to the group: g = exp(T) and g^-1 = exp(-T), exact or first order."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Exponential = Callable[[Tensor], tuple[Tensor, Tensor]]


def exact(element: Tensor) -> tuple[Tensor, Tensor]:
    """(exp(T), exp(-T)) for T of shape ``(*batch, k, k)``; one call serves both."""
    g, inverse = torch.linalg.matrix_exp(torch.stack((element, -element)))
    return g, inverse


def first_order(element: Tensor) -> tuple[Tensor, Tensor]:
    """(I + T, I - T), as in the paper's released code; not inverse to each other beyond O(T)."""
    identity = torch.eye(element.shape[-1], dtype=element.dtype, device=element.device)
    return identity + element, identity - element


EXPONENTIALS: dict[str, Exponential] = {"exact": exact, "first_order": first_order}
