"""Copies of the weights of higher precision that an optimizer keeps beside weights of lower one.

Under mixed precision some optimizers hold float32 copies of bfloat16 weights in their state, step
the copies, and write them into the weights. A move of the weights alone would be lost at the next
step. So the copies move, and the weights become their roundings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metaopt.symmetry.element import Element
from metaopt.symmetry.orbit import Orbit


def is_master(value: Any, parameter: Tensor) -> bool:
    """Return whether an entry of a state is a copy of the weights in a wider dtype.

    Args:
        value: the entry.
        parameter: the weights.
    """
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.shape == parameter.shape
        and torch.finfo(value.dtype).bits > torch.finfo(parameter.dtype).bits
        and torch.equal(value.to(parameter.dtype), parameter.detach())
    )


def masters(
    optimizers: Sequence[torch.optim.Optimizer], parameters: Sequence[nn.Parameter]
) -> list[list[Tensor]]:
    """Return the masters of each parameter, mostly one or none.

    Args:
        optimizers: whose states hold them.
        parameters: the parameters, with the values that they have at the last step's end.
    """

    def of(parameter: nn.Parameter) -> Iterator[Tensor]:
        for optimizer in optimizers:
            for value in optimizer.state.get(parameter, {}).values():
                if is_master(value, parameter):
                    yield value

    if all(p.dtype in (torch.float32, torch.float64) for p in parameters):
        return [[] for _ in parameters]
    return [list(of(parameter)) for parameter in parameters]


@torch.no_grad()
def move_masters(
    held: Sequence[Sequence[Tensor]],
    parameters: Sequence[nn.Parameter],
    orbit: Orbit,
    steps: Sequence[Sequence[Element]],
) -> None:
    """Move the masters as the weights have moved, and round them to the weights.

    Args:
        held: the masters of each parameter.
        parameters: the parameters, which have moved.
        orbit: the orbit that they moved along.
        steps: for each step of the move, T of each site; none where no group moved them. Then the
            masters become copies of the weights.
    """
    if not any(held):
        return
    before = [
        own[0].clone() if own else p.detach() for own, p in zip(held, parameters, strict=True)
    ]
    after = before
    for elements in steps:
        after = orbit.move(after, elements).parameters
    for own, parameter, old, new in zip(held, parameters, before, after, strict=True):
        for master in own:
            master.copy_(new if steps else parameter)
        if own and steps and not torch.equal(old, new):
            parameter.copy_(new)
