"""What happens to an optimizer's buffers, such as momenta, when its weights jump (appendix G.1).

| buffer | of | "keep" | "reset" | "transport" |
| --- | --- | --- | --- | --- |
| momentum_buffer | SGD | stays | as new | as a gradient |
| exp_avg | Adam | stays | as new | as a gradient |
| grad_avg | RMSprop, centered | stays | as new | as a gradient |
| exp_avg_sq, max_exp_avg_sq | Adam, AMSGrad | stays | as new | as squares of gradients |
| square_avg | RMSprop | stays | as new | as squares of gradients |
| sum | Adagrad | stays | initial value | as squares of gradients |
| step | all | stays | as new | stays |
| a copy of the weights in a wider dtype | others | moves | as new | moves |
| others | others | stays | as new | refused |

The action says how a gradient is transported (``Action.transport``): by the inverse transpose of
the move, so that the product <gradient, change of the weights> stays. A square is transported by
the squares of the entries of that matrix, which is exact if the matrix is diagonal.

An optimizer of torch makes most buffers at its first step. Another one, such as Lookahead, may make
them when it is built and rely on them. So what it holds when it is wrapped is what it gets back at
a reset, and a copy of the weights among it becomes a copy of the new weights. Where an optimizer
holds another one, both are treated alike.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metaopt.errors import UserError
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.optim.masters import is_master
from metaopt.symmetry.element import Element
from metaopt.symmetry.orbit import Orbit
from metaopt.symmetry.transported import joined

POLICIES = ("keep", "reset", "transport")
"""The values of ``buffers`` of a :class:`~metaopt.TeleportingOptimizer`."""

GRADIENTS = ("momentum_buffer", "exp_avg", "grad_avg")
SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")
COUNTS = ("step",)

OTHERS = {
    "ASGD": "ax",
    "Adadelta": "acc_delta",
    "Adafactor": "row_var",
    "Adamax": "exp_inf",
    "LBFGS": "old_dirs",
    "NAdam": "mu_product",
    "Rprop": "prev",
}
"""A buffer that cannot be transported of each optimizer of torch that has one."""

_OF_TORCH = "torch.optim"


class AsNew:
    """The buffers that an optimizer has before its first step.

    Build it when the optimizer is new. (An optimizer of torch has none then.)

    Args:
        base: the optimizer.
    """

    def __init__(self, base: torch.optim.Optimizer) -> None:
        self.base = base
        self._entries: dict[nn.Parameter, dict[str, Any]] = {}
        self.add(parameter for group in base.param_groups for parameter in group["params"])

    def add(self, parameters: Iterable[nn.Parameter]) -> None:
        """Take in the buffers of parameters that the optimizer has just been given.

        Args:
            parameters: the parameters.
        """
        if type(self.base).__module__.startswith(_OF_TORCH):
            return
        for parameter in parameters:
            if entries := self.base.state.get(parameter):
                self._entries[parameter] = {
                    key: _Copy(value.dtype) if _is_copy(value, parameter) else copy.deepcopy(value)
                    for key, value in entries.items()
                }

    def give_back(self, parameter: nn.Parameter) -> None:
        """Give a parameter the buffers that it had, or none where it had none."""
        self.base.state.pop(parameter, None)
        if parameter in self._entries:
            self.base.state[parameter] = {
                key: parameter.detach().to(value.dtype, copy=True)
                if isinstance(value, _Copy)
                else copy.deepcopy(value)
                for key, value in self._entries[parameter].items()
            }


@dataclass(frozen=True)
class _Copy:
    """Stands for a copy of the weights in a dtype."""

    dtype: torch.dtype


def _is_copy(value: Any, parameter: nn.Parameter) -> bool:
    return (
        isinstance(value, Tensor)
        and value.shape == parameter.shape
        and torch.equal(value, parameter.detach())
    )


def with_inner(base: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """Return an optimizer, and the optimizers that it holds and that have states of their own."""
    found = [base]
    for optimizer in found:
        for value in vars(optimizer).values():
            if isinstance(value, torch.optim.Optimizer) and all(
                value.state is not known.state for known in found
            ):
                found.append(value)
    return found


def reset(
    base: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], new: AsNew | None = None
) -> None:
    """Give the buffers of some parameters the values that they have in a new optimizer.

    L-BFGS has common buffers for all parameters, and all of them are reset.

    Args:
        base: the optimizer that holds the buffers.
        parameters: the parameters that moved, with their new values.
        new: what it held when it was new; without it, no buffers.
    """
    if isinstance(base, torch.optim.LBFGS):  # it keeps them at its first parameter
        base.state.clear()
        return
    if isinstance(base, torch.optim.Adagrad):  # it makes them when it is built, and never again
        for group in base.param_groups:
            for parameter in group["params"]:
                if any(parameter is own for own in parameters):
                    base.state[parameter]["step"] = torch.zeros_like(base.state[parameter]["step"])
                    base.state[parameter]["sum"].fill_(group["initial_accumulator_value"])
        return
    for parameter in parameters:
        if new is None:
            base.state.pop(parameter, None)
        else:
            new.give_back(parameter)


def check_kind(base: torch.optim.Optimizer) -> None:
    """Check that an optimizer is of no kind whose buffers cannot be transported.

    Args:
        base: the optimizer.

    Raises:
        UserError: for an optimizer of torch that has other buffers than those of this module's
            table, and for a learned one.
    """
    for optimizer in with_inner(base):
        if isinstance(optimizer, LearnedOptimizer):
            raise _refused("the state of an LSTM", optimizer)
        for kind in type(optimizer).__mro__:
            if kind.__module__.startswith(_OF_TORCH) and kind.__name__ in OTHERS:
                raise _refused(repr(OTHERS[kind.__name__]), optimizer)


def check_transport(base: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    """Check that every buffer of some parameters is one that can be transported.

    Args:
        base: the optimizer that holds the buffers.
        parameters: the parameters that will move.

    Raises:
        UserError: for a buffer that is not in the table of this module.
    """
    for optimizer in with_inner(base):
        for parameter in parameters:
            for key, value in optimizer.state.get(parameter, {}).items():
                known = key in GRADIENTS + SQUARES + COUNTS or is_master(value, parameter)
                if not known:
                    raise _refused(repr(key), optimizer)


def _refused(what: str, optimizer: torch.optim.Optimizer) -> UserError:
    return UserError(
        f"expected buffers of {', '.join(GRADIENTS + SQUARES)} to transport, got {what} of "
        f"{type(optimizer).__name__}: use buffers='keep' or 'reset'"
    )


def transport(
    base: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    orbit: Orbit,
    steps: Sequence[Sequence[Element]],
) -> None:
    """Move the buffers along with the weights, as the orbit's actions define it.

    Args:
        base: the optimizer that holds the buffers.
        parameters: the parameters that moved, in the order of the orbit.
        orbit: the orbit that they moved along.
        steps: for each step of the move, T of each site.
    """
    # Nothing is written before all is known, as an action may refuse.
    transported: list[tuple[Tensor | None, Tensor]] = []
    for optimizer in with_inner(base):
        held = [key for p in parameters for key in optimizer.state.get(p, {})]
        for key in dict.fromkeys(held):
            if key not in GRADIENTS + SQUARES:  # a count, or a copy of the weights
                continue
            values = [optimizer.state.get(p, {}).get(key) for p in parameters]
            moved = carried(parameters, values, orbit, steps, squares=key in SQUARES)
            transported += zip(values, moved, strict=True)
    for value, after in transported:
        if value is not None:
            value.copy_(after)


def carried(
    parameters: Sequence[Tensor],
    values: Sequence[Tensor | None],
    orbit: Orbit,
    steps: Sequence[Sequence[Element]],
    squares: bool = False,
) -> list[Tensor]:
    """Return gradients, or averages of them, transported along a move.

    Args:
        parameters: the parameters that moved, in the order of the orbit.
        values: one for each parameter; None stands for zeros.
        orbit: the orbit that they moved along.
        steps: for each step of the move, T of each site.
        squares: whether they are averages of squared gradients.
    """
    moved = [
        torch.zeros_like(p) if v is None else v for p, v in zip(parameters, values, strict=True)
    ]
    for elements in joined(orbit, steps):
        moved = orbit.transport(moved, elements, squares=squares)
    return moved
