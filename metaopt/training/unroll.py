"""Algorithm 1: steps of a learned optimizer, differentiated by truncated backpropagation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from metaopt.learned.differentiable import Unroll, differentiable
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
    recompute: int = 0,
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
        recompute: how many steps the graph is held of at a time; 0 for the whole window. Each
            step is taken twice then, for memory that does not grow with the window.

    Yields:
        Windows with their meta-gradients.
    """
    trained = meta_parameters(optimizer)
    problem.kept_batches = window + 1 if recompute else 1
    with differentiable(problem, optimizer, second_order) as run:
        done = 0
        while done < steps:
            count = min(window, steps - done)
            done += count
            if recompute:
                yield _recomputed(run, count, recompute, meta_loss, trained)
                continue
            after = torch.stack(run.advance(count))
            value = meta_loss(after)
            gradients = torch.autograd.grad(
                value, trained, allow_unused=True, materialize_grads=True
            )
            run.truncate()
            yield Window(value.detach(), list(gradients), after.detach(), run.optimizer.rejected)


def _recomputed(
    run: Unroll, count: int, segment: int, meta_loss: MetaLoss, trained: list[Tensor]
) -> Window:
    """Return a window whose graph is made again, segment by segment, from its end to its start."""
    starts = range(0, count, segment)
    after, places = run.without_graph(count, segment)
    end = run.place()
    losses = torch.stack(after).requires_grad_()
    value = meta_loss(losses)
    (of_losses,) = torch.autograd.grad(value, losses, allow_unused=True, materialize_grads=True)
    gradients = [torch.zeros_like(parameter) for parameter in trained]
    later: list[Tensor] | None = None  # of the meta-loss in the weights and state at the end
    for start, place in zip(reversed(starts), reversed(places), strict=True):
        leaves = run.go_to(place)
        number = min(segment, count - start)
        heads = [torch.stack(run.advance(number))]
        above = [of_losses[start : start + number]]
        if later is not None:
            ends = zip(run.tensors(), later, strict=True)
            kept = [(own, gradient) for own, gradient in ends if own.requires_grad]
            heads += [own for own, _ in kept]
            above += [gradient for _, gradient in kept]
        inner = [leaf for leaf in leaves if leaf.requires_grad]
        found = torch.autograd.grad(
            heads, [*trained, *inner], above, allow_unused=True, materialize_grads=True
        )
        gradients = [a + b for a, b in zip(gradients, found, strict=False)]
        left = iter(found[len(trained) :])
        later = [next(left) if leaf.requires_grad else torch.zeros_like(leaf) for leaf in leaves]
    run.go_to(end)
    return Window(value.detach(), gradients, losses.detach(), run.optimizer.rejected)
