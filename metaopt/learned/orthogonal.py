"""Orthogonal factors of matrices: singular values near 1, by Newton-Schulz iterations."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ITERATIONS = 4
WIDEST = 256  # smaller side of what is made orthogonal as a whole
BLOCK = 128  # smaller side of the blocks that wider matrices are made orthogonal in
QUINTIC = (3.4445, -4.7750, 2.0315)
FLAT = 2  # times as wide as high, from where on a flat matrix is made orthogonal by its Gram matrix
SHORT = 0.25  # of the usual length of a row, below which rows are not made longer any more
LEAST = 1e-15  # a norm below it may have underflowed to 0


def even_rows(matrix: Tensor) -> Tensor:
    """Return a matrix with rows of nearly one length, as long as it was itself.

    Rows that are shorter than a quarter of the usual length stay short. They may be those of units
    that have no gradient any more.

    Args:
        matrix: ``(*batch, rows, columns)``.

    Source: Li et al. (2025), NorMuon, without its moving averages.
    """
    rows = torch.linalg.vector_norm(matrix, dim=-1, keepdim=True)
    whole = torch.linalg.vector_norm(rows, dim=-2, keepdim=True)
    usual = whole / rows.shape[-2] ** 0.5
    factors = 1 / (torch.maximum(rows, SHORT * usual) + LEAST)
    longer = torch.linalg.vector_norm(rows * factors, dim=-2, keepdim=True)
    found: Tensor = matrix * (factors * (whole / (longer + LEAST)))
    return found


def in_blocks(matrix: Tensor) -> Tensor:
    """Return a matrix made orthogonal, as a whole or in blocks where it is wide.

    Args:
        matrix: ``(*batch, rows, columns)``.

    Returns:
        Of the same shape. Where the smaller side is above ``WIDEST``, blocks of at most ``BLOCK``
        rows or columns are made orthogonal each by itself.

    Source: Khaled et al. (2025), MuonBP, for the blocks.
    """
    side = min(matrix.shape[-2:])
    if side <= WIDEST:
        return orthogonalised(matrix)
    along = -2 if matrix.shape[-2] <= matrix.shape[-1] else -1
    parts = matrix.tensor_split(math.ceil(side / BLOCK), dim=along)
    return torch.cat([orthogonalised(part) for part in parts], dim=along)


def orthogonalised(matrix: Tensor) -> Tensor:
    """Return a matrix with singular values near 1 and the same singular vectors.

    Args:
        matrix: ``(*batch, rows, columns)``.

    Returns:
        Of the same shape. Singular values above a hundredth of the Frobenius norm are in about
        [0.5, 1.3] after four iterations.

    Source: Jordan et al. (2024), Muon.
    """
    tall = matrix.shape[-2] > matrix.shape[-1]
    x: Tensor = matrix.mT if tall else matrix
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + LEAST)
    if x.shape[-1] < FLAT * x.shape[-2]:
        for _ in range(ITERATIONS):
            x = _polynomial(x @ x.mT) @ x
        return x.mT if tall else x
    # Each step is a polynomial of x x^T times x; in a flat matrix x x^T is what is small.
    gram, product = x @ x.mT, None
    for index in range(ITERATIONS):
        factor = _polynomial(gram)
        product = factor if product is None else factor @ product
        if index + 1 < ITERATIONS:
            gram = factor @ gram @ factor
    assert product is not None
    x = product @ x
    return x.mT if tall else x


def _polynomial(gram: Tensor) -> Tensor:
    """a + b G + c G^2 of square matrices G."""
    a, b, c = QUINTIC
    found = b * gram + c * gram @ gram
    found.diagonal(dim1=-2, dim2=-1).add_(a)
    return found
