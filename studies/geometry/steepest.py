"""The point of largest ||grad L||^2 on an orbit in the plane: a fine grid, then scipy's polishing.

An orbit is a closed curve (an angle says where on it) or an open one (a real number does). On a
closed curve a continuous function attains its maximum; on an open one it need not, and then there
is no g in argmax_g ||grad L(g.w)||^2 (eqs. 3, 6, 23) to teleport by.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import elementwise
from torch import Tensor

from metaopt.errors import UserError

BatchedFunction = Callable[[Tensor], Tensor]
"""w ``(*batch, n)`` -> ``(*batch,)``; written with torch's functions."""

CANDIDATES = 3  # peaks of the grid that are polished


class Largest(NamedTuple):
    """A maximum on each of m curves."""

    where: Tensor  # (m,) float64: the angle, radians, or the place on an open curve
    value: Tensor  # (m,) float64


def batched_gradient(function: BatchedFunction, w: Tensor) -> Tensor:
    """dL/dw at each point, ``(*batch, n)``."""
    own = w.detach().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(function(own).sum(), own)
    return slope


def largest_on_circles(
    steepness: Callable[[Tensor, Tensor], Tensor], labels: Tensor, grid: int = 128
) -> Largest:
    """The largest value on each of m closed curves.

    Args:
        steepness: (angles, labels), of one shape -> values of that shape; periodic in the angle,
            by 2 pi.
        labels: which curve, ``(m,)`` float64, such as a level or a radius.
        grid: angles to start from; its best peaks are polished.

    Raises:
        UserError: where a value is not finite.
    """
    m = len(labels)
    step = 2 * math.pi / grid
    angles = step * torch.arange(grid, dtype=torch.float64).expand(m, grid)
    values = steepness(angles, labels[:, None].expand(m, grid))
    if not bool(values.isfinite().all()):
        bad = float(labels[(~values.isfinite()).any(-1)][0])
        raise UserError(
            f"expected a finite ||grad L||^2 on the whole orbit, got one that is not on the orbit "
            f"of {bad:g}: the maximum does not exist there; stay where L is smooth"
        )
    peak = (values >= values.roll(1, -1)) & (values >= values.roll(-1, -1))
    best = values.where(peak, -math.inf).topk(CANDIDATES, dim=-1).indices
    middle = step * best.double()
    found = _polish(steepness, middle, step, labels[:, None].expand_as(middle))
    chosen = found.value.argmax(-1, keepdim=True)
    return Largest(*(part.gather(-1, chosen).squeeze(-1) for part in found))


def _polish(
    steepness: Callable[[Tensor, Tensor], Tensor], middle: Tensor, step: float, labels: Tensor
) -> Largest:
    def negative(angles: NDArray[np.float64], of: NDArray[np.float64]) -> Any:
        return -steepness(torch.tensor(angles), torch.tensor(of)).numpy()

    places = (middle - step).numpy(), middle.numpy(), (middle + step).numpy()
    result = elementwise.find_minimum(negative, places, args=(labels.numpy(),))
    start = steepness(middle, labels)
    where, value = torch.tensor(result.x), -torch.tensor(result.f_x)
    better = torch.tensor(result.success) & (value >= start)  # else it was not a peak
    return Largest(where.where(better, middle), value.where(better, start))


def largest_on_line(
    steepness: BatchedFunction, reach: float = 16.0, grid: int = 1024
) -> tuple[float, float]:
    """Find where on an open curve the largest value is, and the value.

    Args:
        steepness: places ``(k,)`` -> values ``(k,)``.
        reach: the places from -reach to reach are looked at.
        grid: how many intervals the search starts from.

    Raises:
        UserError: if no maximum is attained: the values at an end of the curve exceed all those in
            the inner half of it, or are not finite.
    """
    places = torch.linspace(-reach, reach, grid + 1, dtype=torch.float64)
    values = steepness(places)
    inner = values[places.abs() <= reach / 2].max()
    ends = torch.maximum(values[0], values[-1])
    if not bool(values.isfinite().all()) or bool(ends > inner * (1 + 1e-9)):
        raise UserError(
            f"expected an orbit on which ||grad L||^2 attains a maximum, got one on which it still "
            f"rises from {float(inner):g} to {float(ends):g} at its end: choose a group whose "
            f"orbits are bounded"
        )
    step = 2 * reach / grid
    best = places[values.argmax()].reshape(1)
    found = _polish(lambda t, _: steepness(t), best, step, torch.zeros_like(best))
    return float(found.where), float(found.value)
