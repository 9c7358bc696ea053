"""What builds the optimizers that several studies compare, from a network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from metaopt.evaluation.methods import kfac
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.optim import RestartingLBFGS

Build = Callable[[nn.Module], torch.optim.Optimizer]
"""From a network, or a batch of tasks, to an optimizer of its parameters."""


def learned_of(source: str, model: nn.Module) -> torch.optim.Optimizer:
    """Return a learned optimizer.

    Args:
        source: a checkpoint, or the name of a shipped one.
        model: what it steps.
    """
    return LearnedOptimizer(model, source)


def kfac_of(
    damping: float, rate: float, momentum: float, model: nn.Module
) -> torch.optim.Optimizer:
    """Return K-FAC by hand. See :func:`metaopt.evaluation.methods.kfac`."""
    return kfac(damping, momentum)(model, rate)


def lbfgs_of(length: float, history: int, model: nn.Module) -> torch.optim.Optimizer:
    """Return L-BFGS with a strong Wolfe search that goes on.

    Args:
        length: the first that each search tries.
        history: how many changes are remembered.
        model: what it steps.
    """
    return RestartingLBFGS(model.parameters(), length, history)
