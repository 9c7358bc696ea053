"""Algorithm 1: steps of a learned optimizer, differentiated by truncated backpropagation."""

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
    """One window of a trajectory, with its meta-gradient.

    The meta-loss is a function of L(w_{t+1}) after each step t of the window, so the last update of
    the window gets a gradient too. (The paper's sum, and its released code, take L(w_t) before each
    step; the first of these losses depends on no update.)

    Attributes:
        meta_loss: the meta-loss, a scalar.
        gradients: its gradients, one for each trained meta-parameter, in order.
        losses: ``(K, B)``, the losses of B tasks after each of K steps, detached.
        rejected: teleportations that were rejected so far in the trajectory, over all tasks, a
            scalar.
    """

    meta_loss: Tensor
    gradients: list[Tensor]
    losses: Tensor
    rejected: Tensor


def meta_parameters(optimizer: LearnedOptimizer) -> list[Tensor]:
    """Return the meta-parameters of an optimizer that require a gradient."""
    return [p for p in optimizer.meta.parameters() if p.requires_grad]


def unroll(
    problem: TaskBatch,
    optimizer: LearnedOptimizer,
    steps: int,
    window: int,
    meta_loss: MetaLoss,
    second_order: bool = True,
) -> Iterator[Window]:
    """Run a learned optimizer in windows of steps, and differentiate each window.

    The meta-parameters may be changed in place between windows, and the next window uses them.
    Memory does not grow with the number of windows.

    Args:
        problem: the batch of tasks, at its initial weights.
        optimizer: a fresh optimizer of the batch.
        steps: length of the trajectory.
        window: steps in a window; the last window may be shorter.
        meta_loss: the function of a window's losses whose gradient is taken.
        second_order: whether the meta-gradient goes through the gradients, and the Gauss-Newton
            scales, that the steps are made of. Without, as in the paper's released code, m2 learns
            only how g changes a step that stays the same, and drifts away from what helps.

    Yields:
        Windows with their meta-gradients.
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
