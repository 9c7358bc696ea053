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
LEAST = 1e-15  # a norm below it may have underflowed to 0


def even_rows(matrix: Tensor) -> Tensor:
    """Return a matrix with rows of one length, as long as it was itself.

    Args:
        matrix: ``(*batch, rows, columns)``.

    Source: Li et al. (2025), NorMuon, without its moving averages.
    """
    rows = torch.linalg.vector_norm(matrix, dim=-1, keepdim=True)
    whole = torch.linalg.vector_norm(rows, dim=-2, keepdim=True)
    some = (rows > 0).to(rows.dtype).sum(dim=-2, keepdim=True).sqrt()
    found: Tensor = matrix * (whole / (some * rows + LEAST))
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
