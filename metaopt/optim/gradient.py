"""The gradients that a user has computed, after a teleport: they are taken along to the new point.

Where a group keeps the function on all data, the gradient of every loss of the model's output is
known at the new point: it is the old one, transported as the action says. So what was accumulated,
scaled or clipped stays so, and nothing is evaluated again. Under another action the gradient on the
batch is computed at both points. The new one takes the place of the old one, and the rest is
transported. After a search without a group, the gradient on the batch replaces what was there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from metaopt.errors import UserError
from metaopt.optim.buffers import carried
from metaopt.symmetry.element import Element
from metaopt.symmetry.objectives import LossFunction
from metaopt.symmetry.orbit import Orbit


class Way(NamedTuple):
    """The way that parameters moved.

    Attributes:
        names: names of the parameters, in order.
        parameters: the parameters, at the end of the way.
        before: their values at its start.
        orbit: what they moved along.
        steps: for each step, T of each site; empty if the search does not say.
    """

    names: tuple[str, ...]
    parameters: Sequence[nn.Parameter]
    before: Sequence[Tensor]
    orbit: Orbit
    steps: Sequence[Sequence[Element]]

    @property
    def exact(self) -> bool:
        """Whether each action on the way keeps the function on all data."""
        return bool(self.steps) and all(
            action.max_samples(site) == float("inf") for site, action in self.orbit.acting
        )


def transport_gradients(way: Way) -> bool:
    """Transport the gradients of the parameters that moved.

    Args:
        way: the way that they moved.

    Returns:
        Whether it could be done: not if no group moved them, or if an action does not define it.
    """
    gradients = [parameter.grad for parameter in way.parameters]
    if not way.steps:
        return False
    try:
        moved = carried(way.parameters, gradients, way.orbit, way.steps)
    except UserError:
        return False
    for gradient, value in zip(gradients, moved, strict=True):
        if gradient is not None:
            gradient.detach().copy_(value)
    return True


def renew_gradients(
    way: Way, names: Sequence[str], parameters: Sequence[nn.Parameter],
    loss_of: Callable[[Sequence[str]], LossFunction],
) -> None:  # fmt: skip
    """Take the gradients to the new point, as this module says.

    A parameter without gradient keeps none, unless no parameter has one.

    Args:
        way: the way that parameters moved.
        names: the names of all parameters that are trained.
        parameters: these parameters.
        loss_of: returns the loss on the batch as a function of parameters of given names.
    """
    some = any(parameter.grad is not None for parameter in parameters)
    if some and way.exact and transport_gradients(way):
        return
    loss = loss_of(names)
    if some and way.steps:
        start = dict(zip(way.names, way.before, strict=True))
        old = _gradients(loss, [start.get(n, p) for n, p in zip(names, parameters, strict=True)])
        for parameter, gradient in zip(parameters, old, strict=True):
            if parameter.grad is not None and gradient is not None:
                parameter.grad.detach().sub_(gradient)
        transport_gradients(way)
    for parameter, gradient in zip(parameters, _gradients(loss, parameters), strict=True):
        if not some:
            parameter.grad = gradient
        elif parameter.grad is not None and gradient is not None:
            (parameter.grad.detach().add_ if way.steps else parameter.grad.detach().copy_)(gradient)


def _gradients(loss: LossFunction, values: Sequence[Tensor]) -> Sequence[Tensor | None]:
    leaves = [value.detach().requires_grad_() for value in values]
    with torch.enable_grad():
        return torch.autograd.grad(loss(leaves), leaves, allow_unused=True)
