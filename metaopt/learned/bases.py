"""Coefficients of all layers, each in the basis of its curvature, as one row for each task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, final

import torch
from torch import Tensor

from metaopt.learned.kronecker import LayerCurvature

Matrices = list[Tensor]
"""Of each layer, ``(*batch, out, in + 1)``."""


class Row(NamedTuple):
    """Coefficients of all layers as one row.

    Attributes:
        whole: ``(*batch, coefficients)``.
        parts: what belongs to each layer, as views.
    """

    whole: Tensor
    parts: Matrices


@final
@dataclass(frozen=True)
class Bases:
    """The bases of the curvatures of all layers.

    Attributes:
        factors: the curvature of each layer, decomposed.
        shapes: of the augmented weights, ``(*batch, out, in + 1)`` each.
    """

    factors: Sequence[LayerCurvature]
    shapes: Sequence[torch.Size]

    @property
    def batch(self) -> torch.Size:
        """The dimensions of tasks."""
        return self.shapes[0][:-2]

    @cached_property
    def _sizes(self) -> list[int]:
        return [shape[-2] * shape[-1] for shape in self.shapes]

    def row(self, parts: Sequence[Tensor]) -> Tensor:
        """Return what belongs to each layer as one row, ``(*batch, coefficients)``.

        Args:
            parts: of each layer, of its shape.
        """
        return torch.cat([own.flatten(start_dim=-2) for own in parts], dim=-1)

    def parts(self, row: Tensor) -> Matrices:
        """Return a row as what belongs to each layer; the inverse of :meth:`row`.

        Args:
            row: ``(*batch, coefficients)``.
        """
        pieces = row.split_with_sizes(self._sizes, dim=-1)
        return [own.view(shape) for own, shape in zip(pieces, self.shapes, strict=True)]

    def empty(self, like: Tensor) -> Row:
        """Return a row that is not filled yet.

        Args:
            like: a row.
        """
        whole = torch.empty_like(like)
        return Row(whole, self.parts(whole))

    def back(self, row: Tensor) -> Matrices:
        """Return the matrices that a row has the coefficients of.

        Args:
            row: ``(*batch, coefficients)``.
        """
        return [f.back(own) for f, own in zip(self.factors, self.parts(row), strict=True)]

    def scaled(self, row: Tensor, by: Sequence[Tensor]) -> Tensor:
        """Return the coefficients of matrices whose entries are multiplied by others.

        Args:
            row: their coefficients, ``(*batch, coefficients)``.
            by: what they are multiplied by, of the shape of each layer.
        """
        return self.row(self.scaled_parts(self.parts(row), by))

    def scaled_parts(self, parts: Sequence[Tensor], by: Sequence[Tensor]) -> Matrices:
        """Return the same of each layer, which may have further dimensions before its own.

        Args:
            parts: coefficients of each layer, ``(..., *batch, out, in + 1)``.
            by: what the matrices are multiplied by, of the shape of each layer.
        """
        return [
            f.into(f.back(own) * other)
            for f, own, other in zip(self.factors, parts, by, strict=True)
        ]
