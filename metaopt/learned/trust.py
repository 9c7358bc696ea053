"""How far the steps of a learned optimizer are trusted on a network it was not trained on.

Where the gradient at the output has grown, steps of f and T are halved, and come back slowly. No
loss is asked for: of a squared error that gradient is the residual, times a constant.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORSE = 2.0  # times the least mean square output gradient so far
BACK = 1.1  # a step
LEAST = 1e-3
DECAY = 0.95  # of the average over changing batches


def untried() -> Tensor:
    """Full trust; nothing was seen yet, ``(3,)``: trust, level, least level."""
    return torch.tensor([1.0, torch.inf, torch.inf], dtype=torch.float64)


def trusted(before: Tensor, gradient: Tensor, same: bool) -> Tensor:
    """The next state, after a pass with this gradient at the output.

    Args:
        same: whether the batch is the one of the step before; else levels are averaged.
    """
    trust, level, least = before.tolist()
    samples = (
        gradient.shape[0] if gradient.dim() else 1
    )  # of a mean, each has a share of 1 / samples
    now = float((samples * gradient.double()).square().mean())
    if not same and level != float("inf"):
        now = DECAY * level + (1 - DECAY) * now
    if now == 0:
        return before
    if not now < float("inf"):
        return torch.tensor([max(LEAST, trust / 2), level, least], dtype=torch.float64)
    trust = max(LEAST, trust / 2) if now > WORSE * least else min(1.0, trust * BACK)
    return torch.tensor([trust, now, min(least, now)], dtype=torch.float64)
