"""Levenberg-Marquardt, the usual second-order method for small least-squares problems.

It is a baseline for small problems only. A step computes the Jacobian of all residuals, and
factorises a square matrix with as many rows as there are residuals or weights, whichever is fewer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import jacrev

from metaopt.errors import UserError
from metaopt.learned.observation import flatten, unflatten
from metaopt.tasks import Regression

TRIES = 10  # dampings tried in a step before the problem stays where it is


class LevenbergMarquardt(torch.optim.Optimizer):
    """The Levenberg-Marquardt method on a batch of least-squares tasks, each with its own damping.

    With the residuals r, their Jacobian J in the weights w, and the damping lambda, a step is

        w <- w - J^T (J J^T + lambda I)^-1 r,

    computed in float64. If it lowers the loss, lambda is divided by ``factor``. If not, lambda is
    multiplied by it and the step is tried again, so the loss never rises. A task that no damping
    helps keeps its weights from then on.

    Args:
        problem: a batch of regression tasks, whose weights are the parameters.
        damping: the first lambda, as a multiple of the mean diagonal entry of J J^T at the start.
        factor: what lambda is multiplied or divided by, above 1.

    Raises:
        UserError: for a damping that is not positive, or a factor that is not above 1.

    Source: D. W. Marquardt, SIAM J. Appl. Math. 11 (1963).
    """

    def __init__(self, problem: Regression, damping: float = 1e-3, factor: float = 5.0) -> None:
        if not damping > 0 or not factor > 1:
            raise UserError(
                f"expected damping > 0 and factor > 1, got damping={damping}, factor={factor}: "
                "the defaults are 1e-3 and 5"
            )
        super().__init__(list(problem.parameters()), {"damping": damping})
        self.problem = problem
        self.factor = factor

    @property
    def dampings(self) -> Tensor:
        """The damping of each task, float64 ``(B,)``.

        It is NaN before the first step, and infinite for a task that no damping helps any more.
        """
        kept: dict[Any, Any] = self.state  # keys that are no parameters pass through state_dict
        if "dampings" not in kept:
            kept["dampings"] = torch.full((self.problem.batch,), math.nan, dtype=torch.float64)
        dampings: Tensor = kept["dampings"]
        return dampings

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to copy or pickle: what torch keeps, the tasks and the factor."""
        return {**super().__getstate__(), "problem": self.problem, "factor": self.factor}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step on every task of the batch.

        Args:
            closure: called once before the step, for the value that is returned.

        Returns:
            What the closure returned; None without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        kept: dict[Any, Any] = self.state
        kept["dampings"] = self.dampings.clone()  # a state_dict taken before keeps its own
        for index in range(self.problem.batch):
            self._step_one(index)
        return loss

    def _step_one(self, index: int) -> None:
        if self.dampings[index].isinf():
            return
        weights = [parameter[index] for parameter in self.problem.parameters()]
        flat = flatten(weights).double()

        def residuals(vector: Tensor) -> Tensor:
            shaped = unflatten(vector, weights)
            x, y = self.problem.x[index].double(), self.problem.y[index].double()
            layers = self.problem.chain.layers(shaped)
            return (self.problem.chain.output(layers, x) - y).reshape(-1)

        r = residuals(flat)
        jacobian: Tensor = jacrev(residuals)(flat)
        wide = jacobian.shape[0] <= jacobian.shape[1]
        gram = jacobian @ jacobian.mT if wide else jacobian.mT @ jacobian
        damping = self.dampings[index].clone()
        if damping.isnan():
            damping = self.param_groups[0]["damping"] * gram.diagonal().mean()
        identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        for _ in range(TRIES):
            factor, info = torch.linalg.cholesky_ex(gram + damping * identity)
            if info == 0:
                right = (r if wide else jacobian.mT @ r).unsqueeze(-1)
                solved = torch.cholesky_solve(right, factor).squeeze(-1)
                trial = flat - (jacobian.mT @ solved if wide else solved)
                # Judged as it will be stored: float32 weights round it.
                trial = trial.to(weights[0].dtype).double()
                if residuals(trial).square().sum() < r.square().sum():
                    for weight, value in zip(weights, unflatten(trial, weights), strict=True):
                        weight.copy_(value)
                    self.dampings[index] = damping / self.factor
                    return
            damping = damping * self.factor
        self.dampings[index] = math.inf
