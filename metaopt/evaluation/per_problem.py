"""One optimizer a problem, for optimizers that would mix the problems of a batch.

L-BFGS takes inner products over all it is given, and Muon takes matrices alone; a batch of
problems is neither one vector nor one matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metaopt.tasks import Regression


class PerProblemOptimizer(torch.optim.Optimizer):
    """Steps problem b of a batch with an optimizer of its own, on views of the batch's weights.

    A problem that is not finite is lost and stays so; so is one whose optimizer fails to decompose
    a matrix that overflowed: its weights become NaN.
    """

    def __init__(
        self,
        problem: Regression,
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
        """One step of every problem; the batch is evaluated once, and again where asked again."""
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
