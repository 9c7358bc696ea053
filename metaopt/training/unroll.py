"""Algorithm 1: the differentiable driver of inner steps, by truncated backpropagation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from metaopt.learned.differentiable import differentiable
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.tasks import TaskBatch
from metaopt.training.meta_loss import MetaLoss


class Window(NamedTuple):
    """One window of a trajectory.

    The meta-loss is over L(w_{t+1}) after each step t of the window, so the window's last update
    has a signal too. (The paper's sum, and its released code, take L(w_t) before each step; the
    first of these has no gradient.)
    """

    meta_loss: Tensor  # scalar
    gradients: list[Tensor]  # of the meta-loss, one a meta-parameter, in order
    losses: Tensor  # (K, B), detached
    refused: Tensor  # scalar: refused teleportations so far in the trajectory, over problems


def meta_parameters(optimizer: LearnedOptimizer) -> list[Tensor]:
    """Those that are trained."""
    return [p for p in optimizer.meta.parameters() if p.requires_grad]


def unroll(
    problem: TaskBatch,
    optimizer: LearnedOptimizer,
    steps: int,
    window: int,
    meta_loss: MetaLoss,
    second_order: bool = True,
) -> Iterator[Window]:
    """Run ``steps`` steps in windows of ``window``, yielding the meta-gradient of each.

    Change the meta-parameters in place between windows: the next window uses them. Memory does
    not grow with the number of windows.

    Args:
        second_order: whether the meta-gradient goes through the gradients and scales that steps
            are made of. Without (as in the paper's released code), m2 learns of nothing but what
            g does to a step that stays the same, and drifts away from what helps.
    """
    trained = meta_parameters(optimizer)
    with differentiable(problem, optimizer, second_order) as run:
        done = 0
        while done < steps:
            count = min(window, steps - done)
            after: list[Tensor] = []
            losses = run.losses()
            for _ in range(count):
                run.step(losses)
                losses = run.losses()
                after.append(losses)
            done += count
            value = meta_loss(torch.stack(after))
            gradients = torch.autograd.grad(
                value, trained, allow_unused=True, materialize_grads=True
            )
            run.truncate()
            yield Window(
                value.detach(), list(gradients), torch.stack(after).detach(), run.optimizer.rejected
            )
