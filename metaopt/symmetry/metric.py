"""The diagonal metric A of an adaptive optimizer, whose step is -lr A m with m its momentum (eq.

99).

| optimizer | A, entry by entry | eps |
| --- | --- | --- |
| Adagrad | 1 / (sqrt(sum) + eps) | outside the root, as in torch; eq. 99 has it inside |
| RMSprop | 1 / (sqrt(square_avg) + eps); centered, of square_avg - grad_avg^2 | the same |
| Adam, AdamW | 1 / (sqrt(exp_avg_sq / (1 - beta2^step)) + eps) | the same |
| with amsgrad | the same of max_exp_avg_sq | the same |

Weight decay and ``lr_decay`` are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from metaopt.errors import UserError


def adaptive_metric(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """Return the diagonal metric A of an adaptive optimizer as it is now.

    Args:
        optimizer: an Adagrad, RMSprop, Adam or AdamW of torch.
        parameters: parameters that it holds.
        gradients: the gradients of the coming step, one for each parameter. With them A is the
            metric of that step (G_{t+1} of eq. 99). Without them an entry that never had a gradient
            has A = 1 / eps, and a gradient that it gets elsewhere outweighs all others.

    Returns:
        New tensors, one for each parameter and of its shape.

    Raises:
        UserError: for a parameter that the optimizer does not hold or has not stepped, and for
            an optimizer that is not in the table of this module.
    """
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    given = [None] * len(parameters) if gradients is None else list(gradients)
    metric = []
    for parameter, gradient in zip(parameters, given, strict=True):
        if id(parameter) not in groups:
            raise UserError(
                "expected parameters that the optimizer holds, got others: give those that it "
                "was built from"
            )
        state = optimizer.state.get(parameter, {})
        square = None if gradient is None else gradient.detach().square()
        second, eps = _second_moment(optimizer, groups[id(parameter)], state, gradient, square)
        metric.append(1 / (second.sqrt() + eps))
    return metric


def _second_moment(
    optimizer: torch.optim.Optimizer,
    group: Mapping[str, Any],
    state: Mapping[str, Any],
    gradient: Tensor | None,
    square: Tensor | None,
) -> tuple[Tensor, float]:
    """Return the number under the root, after the gradient if there is one, and eps."""
    eps = group.get("eps", 0.0)
    if "sum" in state:
        total: Tensor = state["sum"]
        return (total if square is None else total + square), eps
    if "square_avg" in state and "alpha" in group:
        average, weight = state["square_avg"], 1 - group["alpha"]
        average = average if square is None else average.lerp(square, weight)
        if group["centered"]:
            mean = state["grad_avg"]
            mean = mean if gradient is None else mean.lerp(gradient.detach(), weight)
            average = (average - mean.square()).clamp(min=0)
        return average, eps
    if "exp_avg_sq" in state and "betas" in group:
        moment, beta, steps = state["exp_avg_sq"], group["betas"][1], float(state["step"])
        if square is not None:
            moment, steps = moment.lerp(square, 1 - beta), steps + 1
        if group.get("amsgrad", False):
            moment = torch.maximum(state["max_exp_avg_sq"], moment)
        return moment / (1 - beta**steps), eps
    raise UserError(
        f"expected Adagrad, RMSprop or Adam after at least one step, got "
        f"{type(optimizer).__name__} with {', '.join(state) or 'no buffers'}: step it first, or "
        f"use gradient_norm"
    )
