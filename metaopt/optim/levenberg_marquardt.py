"""Levenberg-Marquardt: the dense second-order method that least squares is usually given to.

A reference, not a rival at scale: a step makes the Jacobian of all residuals and factorises a
matrix as large as the smaller of residuals and weights.
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
    """w <- w - J^T (J J^T + lambda I)^-1 r, in float64, each problem of the batch alone.

    A step that lowers the loss divides lambda by ``factor``; one that would not multiplies it and
    tries again, so the loss never rises. A problem that no damping helps stays where it is.

    Args:
        problem: whose residuals are squared; its weights are the parameters.
        damping: initial lambda, in units of the mean diagonal of J J^T at the start.
        factor: by which lambda changes.
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
        """lambda of each problem, (B,); NaN before its first step, infinite after its last."""
        kept: dict[Any, Any] = self.state  # keys that are no parameters pass through state_dict
        if "dampings" not in kept:
            kept["dampings"] = torch.full((self.problem.batch,), math.nan, dtype=torch.float64)
        dampings: Tensor = kept["dampings"]
        return dampings

    def __getstate__(self) -> dict[str, Any]:
        """What torch keeps, and what it would lose."""
        return {**super().__getstate__(), "problem": self.problem, "factor": self.factor}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every problem; the closure is called once, for its value."""
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
