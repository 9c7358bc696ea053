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

The action says how a gradient is transported (``Action.transport``): by the inverse transpose of
the move, so that the product <gradient, change of the weights> stays. A square is transported by
the squares of the entries of that matrix, which is exact if the matrix is diagonal.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metaopt.errors import UserError
from metaopt.symmetry.element import Element
from metaopt.symmetry.orbit import Orbit

POLICIES = ("keep", "reset", "transport")
"""The values of ``buffers`` of a :class:`~metaopt.TeleportingOptimizer`."""

GRADIENTS = ("momentum_buffer", "exp_avg", "grad_avg")
SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")
COUNTS = ("step",)


def reset(base: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    """Give the buffers of some parameters the values that they have in a new optimizer.

    L-BFGS has common buffers for all parameters, and all of them are reset.

    Args:
        base: the optimizer that holds the buffers.
        parameters: the parameters that moved.
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
        base.state.pop(parameter, None)


def check_transport(base: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    """Check that every buffer of some parameters is one that can be transported.

    Args:
        base: the optimizer that holds the buffers.
        parameters: the parameters that will move.

    Raises:
        UserError: for a buffer that is not in the table of this module.
    """
    for parameter in parameters:
        for key in base.state.get(parameter, {}):
            if key not in GRADIENTS + SQUARES + COUNTS:
                raise UserError(
                    f"expected buffers of {', '.join(GRADIENTS + SQUARES)} to transport, got "
                    f"{key!r} of {type(base).__name__}: use buffers='keep' or 'reset'"
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
    held = [key for p in parameters for key in base.state.get(p, {})]
    for key in dict.fromkeys(held):
        if key in COUNTS:
            continue
        values = [base.state.get(p, {}).get(key) for p in parameters]
        moved = [torch.zeros_like(p) if v is None else v for p, v in zip(parameters, values)]  # noqa: B905
        for elements in steps:
            moved = orbit.transport(moved, elements, squares=key in SQUARES)
        transported += zip(values, moved, strict=True)
    for value, after in transported:
        if value is not None:
            value.copy_(after)
