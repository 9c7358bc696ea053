"""A new hand-made optimizer in the table of methods: Lion, with and without a teleport.

Lion (Chen et al. 2023) steps by the sign of a momentum. It works entry by entry, so the problems of
a batch do not mix. One that looks at a whole tensor, as L-BFGS does, would need
``metaopt.evaluation.per_problem.PerProblemOptimizer``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from metaopt import TeleportingOptimizer
from metaopt.evaluation import (
    BASELINES,
    as_text,
    best,
    evaluate,
    register_method,
    resolve,
    summarise,
    sweep,
)
from metaopt.symmetry import GradientAscent
from metaopt.tasks import Regression, RegressionFamily, first_seeds


class Lion(torch.optim.Optimizer):
    """w <- w - lr sign(beta_1 m + (1 - beta_1) g),   m <- beta_2 m + (1 - beta_2) g.

    The buffer m is an average of gradients. It is called ``momentum_buffer``, as in torch's SGD, so
    that a teleport can transport it (``metaopt.optim.buffers``).
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; a closure is evaluated first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            fast, slow = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                momentum = state["momentum_buffer"]
                parameter.sub_(group["lr"] * momentum.lerp(parameter.grad, 1 - fast).sign())
                momentum.lerp_(parameter.grad, 1 - slow)
        return loss


def lion(problem: Regression, rate: float) -> torch.optim.Optimizer:
    """For a problem, as the table wants it."""
    return Lion(problem.parameters(), lr=rate)


def lion_tele(problem: Regression, rate: float) -> torch.optim.Optimizer:
    """With one teleport before step 5, which m follows."""
    return TeleportingOptimizer(
        Lion(problem.parameters(), lr=rate),
        problem,
        schedule=[5],
        search=GradientAscent(initial_step=0.01),
        buffers="transport",
    )


register_method("lion", lion, rate=1e-2)
register_method("lion_tele", lion_tele, rate=1e-2)


def choose_rates(family: RegressionFamily) -> None:
    """Give both the rate that is best on validation problems."""
    swept = list(sweep(["lion", "lion_tele"], family, 4, 50, rates=(1e-3, 1e-2, 1e-1)))
    for found in best(swept):
        before = BASELINES.pop(found.method)  # a name that is taken is not given twice
        register_method(before.name, before.build, found.rate)


def main() -> str:
    """The table of results on test problems, of problems smaller than the usual ones."""
    family = RegressionFamily.square(8)
    choose_rates(family)
    methods = [resolve(name) for name in ("lion", "lion_tele", "lion@0.001", "gd")]
    results = list(evaluate(methods, family, first_seeds("test", 4), steps=50))
    return as_text(summarise(results), steps=50)


if __name__ == "__main__":
    torch.set_num_threads(1)  # the tensors are tiny; more threads only wait for one another
    print(main())
