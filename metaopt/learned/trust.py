"""Trust: the factor of a learned optimizer's steps on a network that it was not trained on.

Where the gradient dL/dF at the model's output F has grown, f and T are halved. They come back
slowly. The loss itself is not needed: for a squared error that gradient is a constant times the
residual.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metaopt.replicas import ALONE, Replicas

WORSE = 2.0  # times the least level so far: above it trust is halved
BACK = 1.1  # the factor by which trust comes back at a step
LEAST = 1e-3  # trust
DECAY = 0.95  # of the average of levels over changing batches


def untried() -> Tensor:
    """Return the state before the first step: trust, level and least level, ``(3,)`` float64.

    A level is the mean square of the output gradient, times the number of samples squared.
    """
    return torch.tensor([1.0, torch.inf, torch.inf], dtype=torch.float64)


def trusted(before: Tensor, gradient: Tensor, same: bool, replicas: Replicas = ALONE) -> Tensor:
    """Return the state after a pass.

    Args:
        before: the state before the pass.
        gradient: dL/dF at the output, samples in rows.
        same: whether the batch is the one of the step before. Levels of changing batches are
            averaged.
        replicas: the processes whose outputs count too.
    """
    trust, level, least = before.tolist()
    samples = gradient.shape[0] if gradient.dim() else 1  # of a mean, each has 1 / samples
    squares = (samples * gradient.double()).square().sum()
    count = squares.new_tensor(float(gradient.numel()))
    total, entries = replicas.sum(torch.stack((squares, count))).tolist()
    now = total / max(entries, 1)  # a batch may be empty
    if not same and level != float("inf"):
        now = DECAY * level + (1 - DECAY) * now
    if now == 0:
        return before
    if not now < float("inf"):
        return torch.tensor([max(LEAST, trust / 2), level, least], dtype=torch.float64)
    trust = max(LEAST, trust / 2) if now > WORSE * least else min(1.0, trust * BACK)
    return torch.tensor([trust, now, min(least, now)], dtype=torch.float64)
