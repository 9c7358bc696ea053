"""Functions of two variables that are strictly convex, or only just not, for Proposition A.2.

Each is called with w ``(*batch, 2)`` and returns ``(*batch,)``; where it has a minimiser this is 0,
with L(0) = 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

PlanarFunction = Callable[[Tensor], Tensor]


def quartic_valley(w: Tensor) -> Tensor:
    """x^2/2 + y^2/4 + y^4/4: the steepest direction goes from x to y as the level rises."""
    x, y = w.unbind(-1)
    return x.square() / 2 + y.square() / 4 + y**4 / 4


def log_cosh(w: Tensor) -> Tensor:
    """log cosh(x + y) + log cosh(2 x - y) + (x^2 + y^2) / 20."""
    x, y = w.unbind(-1)
    parts = torch.stack([x + y, 2 * x - y], -1)
    bent = torch.logaddexp(parts, -parts) - torch.log(torch.tensor(2.0, dtype=w.dtype))
    return bent.sum(-1) + w.square().sum(-1) / 20


def lopsided(w: Tensor) -> Tensor:
    """e^x - x - 1 + (y - x/2)^2 / 2, not symmetric about its minimum."""
    x, y = w.unbind(-1)
    return x.exp() - x - 1 + (y - x / 2).square() / 2


STRICTLY_CONVEX: dict[str, PlanarFunction] = {
    "quartic-valley": quartic_valley,
    "log-cosh": log_cosh,
    "lopsided": lopsided,
}
"""With a minimiser, so that level sets are closed curves and largest gradients attained."""


def huber(w: Tensor) -> Tensor:
    """|w|^2 / 2 up to |w| = 1, then |w| - 1/2: convex, not strictly; max ||grad L|| = 1."""
    r = w.square().sum(-1).clamp(min=1e-300).sqrt()
    return torch.where(r <= 1, r.square() / 2, r - 0.5)


def exponentials(w: Tensor) -> Tensor:
    """e^x + e^y: strictly convex without a minimiser; sup ||grad L||^2 = level^2, not attained."""
    return w.exp().sum(-1)


def exponentials_level(t: Tensor, level: float) -> Tensor:
    """Its level set, ``(k, 2)``, by a real number ``(k,)``: e^x = level / (1 + e^-t)."""
    return torch.stack([t, -t], -1).sigmoid().log() + torch.tensor(level, dtype=t.dtype).log()


def narrowing_cone(w: Tensor) -> Tensor:
    """sqrt(y^2 + e^-2x): strictly convex without a minimiser.

    On {L = level < 1} sup ||grad L||^2 = 1, which is not attained and does not rise with the level.
    """
    x, y = w.unbind(-1)
    return (y.square() + (-2 * x).exp()).sqrt()


def narrowing_cone_level(t: Tensor, level: float) -> Tensor:
    """Its level set, ``(k, 2)``: y = level tanh t, e^-x = level / cosh t."""
    return torch.stack([(t.cosh() / level).log(), level * t.tanh()], -1)


def bent_line(x: Tensor) -> Tensor:
    """x^2/2 + cos x - 1, of one variable: strictly convex, yet L'' = 1 - cos x is 0 at 2 pi."""
    return x.square() / 2 + x.cos() - 1
