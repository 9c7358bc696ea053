"""Draw random directions in the space of a network's parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metaopt.errors import UserError


def unit_directions(
    parameters: Sequence[Tensor], count: int, generator: torch.Generator
) -> list[Tensor]:
    """Draw directions that are uniform on the unit sphere of all parameters together.

    Args:
        parameters: those of one network. The directions have their shapes, dtypes and devices.
        count: how many directions.
        generator: what they are drawn from.

    Returns:
        One tensor a parameter, ``(count, *shape of the parameter)``.

    Raises:
        UserError: for a count below 1.
    """
    if count < 1:
        raise UserError(f"expected 1 direction or more, got {count}: 200 is usual")
    drawn = [torch.randn(count, *p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    squares = [torch.linalg.vector_norm(d.flatten(1), dim=1).double().square() for d in drawn]
    norms = torch.stack(squares).sum(dim=0).sqrt()
    return [
        d.div_(norms.to(d.dtype).reshape(-1, *(1,) * (d.dim() - 1))).to(p.device)
        for d, p in zip(drawn, parameters, strict=True)
    ]
