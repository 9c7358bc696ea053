"""The loop of optimization steps: any ``torch.optim.Optimizer`` on a batch of tasks.

The only other such loop is its differentiable form, ``metaopt.training.unroll``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metaopt.errors import UserError
from metaopt.evaluation.clock import Clock
from metaopt.evaluation.progress import Advance
from metaopt.symmetry import Teleportation
from metaopt.tasks import TaskBatch


@dataclass(frozen=True)
class Trajectory:
    """What was recorded at steps 0 to the last; every tensor is ``(steps + 1, B)`` for B tasks.

    Attributes:
        losses: at w_t, before the step from t to t + 1.
        grad_norms: norms of the gradients at w_t.
        invariance_errors: of the teleportation in the step that led to t; NaN if there was none, or
            if it was reverted or rejected.
        rejected: whether that teleportation was rejected for the task.
        seconds_per_step: wall clock of ``optimizer.step`` with its closure, for a step of the
            batch.
    """

    losses: Tensor
    grad_norms: Tensor
    invariance_errors: Tensor
    rejected: Tensor
    seconds_per_step: float


class _Recorder:
    """The closure of one run; it keeps the first evaluation of each step, which is at w_t."""

    def __init__(self, tasks: TaskBatch) -> None:
        self.tasks = tasks
        self.losses: list[Tensor] = []
        self.grad_norms: list[Tensor] = []
        self.fresh = True
        self.step = 0

    def __call__(self) -> Any:
        self.tasks.zero_grad(set_to_none=True)
        losses: Tensor = self.tasks(self.step)
        total = losses.sum()
        total.backward()  # type: ignore[no-untyped-call]
        if self.fresh:
            self.fresh = False
            self.losses.append(losses.detach().double())
            self.grad_norms.append(self.tasks.gradient_norms())
        return total.detach()


def rollout(
    problem: TaskBatch,
    optimizer: torch.optim.Optimizer,
    steps: int,
    measure_invariance: bool = True,
    advance: Advance | None = None,
    first_step: int = 0,
) -> Trajectory:
    """Step an optimizer on a batch of tasks, always with a closure, and record what happens.

    An optimizer that teleports shows its last move as the attribute ``teleportation``.

    Args:
        problem: the batch of tasks, at its initial weights.
        optimizer: an optimizer of its parameters.
        steps: how many steps to take.
        measure_invariance: whether to measure invariance errors, which cost two forward passes
            each.
        advance: called after each step, to show the progress.
        first_step: number of the first step; tasks of minibatches choose the minibatch by it.
    """
    closure = _Recorder(problem)
    device = next(problem.parameters()).device
    nothing = torch.full((problem.batch,), torch.nan, dtype=torch.float64, device=device)
    errors, rejected = [nothing], [torch.zeros(problem.batch, dtype=torch.bool, device=device)]
    clock = Clock(device)
    for step in range(steps):
        closure.fresh, closure.step = True, first_step + step
        with clock:
            optimizer.step(closure)
        if closure.fresh:
            raise UserError(
                f"expected an optimizer whose step(closure) calls the closure, got "
                f"{type(optimizer).__name__}, which does not: evaluate it at the start of step()"
            )
        teleportation = getattr(optimizer, "teleportation", None)
        if teleportation is None:
            errors.append(nothing)
            rejected.append(rejected[0])
        else:
            error = _invariance_error(teleportation) if measure_invariance else nothing
            errors.append(error.reshape(problem.batch))  # of a single task it is a scalar
            rejected.append(teleportation.rejected.reshape(problem.batch))
        if advance is not None:
            advance()
    closure.fresh, closure.step = True, first_step + steps
    closure()
    return Trajectory(
        torch.stack(closure.losses),
        torch.stack(closure.grad_norms),
        torch.stack(errors),
        torch.stack(rejected),
        clock.seconds() / max(steps, 1),
    )


def _invariance_error(teleportation: Teleportation) -> Tensor:
    error = teleportation.invariance_error()
    stayed = teleportation.rejected & (error == 0)
    if teleportation.reverted is not None:
        stayed = stayed | teleportation.reverted
    return error.masked_fill(stayed, torch.nan)
