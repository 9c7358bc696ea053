"""One step of any optimizer on an ordinary network, as a user's own loop takes it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def step_on(
    optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor], again: bool = True
) -> Tensor:
    """Take a step, and return the loss before it.

    Args:
        optimizer: of the network.
        loss: computes the loss at the present weights, a scalar.
        again: whether the optimizer is given a closure, with which it can evaluate the loss again;
            without, it has the gradient alone.
    """
    first: list[Tensor] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        if not first:
            first.append(value.detach())
        return value

    if again:
        optimizer.step(closure)  # type: ignore[arg-type]
    else:
        closure()
        optimizer.step()
    return first[0]
