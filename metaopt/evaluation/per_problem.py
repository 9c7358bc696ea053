"""One optimizer for each task, for optimizers that would mix the tasks of a batch.

L-BFGS takes inner products over all its parameters, and Muon takes matrices alone. A batch of tasks
is neither one vector nor one matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metaopt.tasks import TaskBatch


class PerProblemOptimizer(torch.optim.Optimizer):
    """An optimizer that steps each task of a batch with an optimizer of its own.

    A task whose weights are not finite is lost and stays so. A task whose optimizer fails to
    decompose
    a matrix that overflowed is lost too: its weights become NaN.

    Args:
        problem: the batch of tasks.
        build: a function from the parameters of one task, which are views of the batch's, to an
            optimizer.
    """

    def __init__(
        self,
        problem: TaskBatch,
        build: Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer],
    ) -> None:
        super().__init__(list(problem.parameters()), {})
        self.problem = problem
        self.views = [
            [nn.Parameter(parameter.detach()[b]) for parameter in problem.parameters()]
            for b in range(problem.batch)
        ]
        self.optimizers = [build(views) for views in self.views]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step on every task.

        The batch is evaluated once, and again each time an optimizer asks for another evaluation.

        Args:
            closure: evaluates the losses and their gradients anew; it is needed.

        Returns:
            What the first call of the closure returned.
        """
        if closure is None:
            raise ValueError("expected a closure, got none: call step(closure)")
        loss = self._evaluate(closure)
        first = self.losses
        for b, optimizer in enumerate(self.optimizers):
            asked = 0

            def own(b: int = b) -> Any:
                nonlocal asked
                asked += 1
                if asked > 1:
                    self._evaluate(closure)
                    return self.losses[b]
                return first[b]

            if not all(view.grad is None or view.grad.isfinite().all() for view in self.views[b]):
                continue
            try:
                optimizer.step(own)
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
                for view in self.views[b]:
                    view.detach().fill_(torch.nan)
        return loss

    def _evaluate(self, closure: Callable[[], Any]) -> Any:
        with torch.enable_grad():
            loss = closure()
        with torch.no_grad():
            self.losses: Tensor = self.problem()
        for b, views in enumerate(self.views):
            for view, parameter in zip(views, self.problem.parameters(), strict=True):
                view.grad = None if parameter.grad is None else parameter.grad[b]
        return loss
