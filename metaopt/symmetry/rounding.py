"""Weight-only quantisation: what a network computes with weights of few bits.

Weights are rounded to 2^bits - 1 evenly spaced numbers around 0, up to the largest one of their
tensor, of their output channel, or of 32 weights of one output channel. Biases, norms and
embeddings stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaopt.checks import check_whole
from metaopt.errors import UserError, unknown
from metaopt.symmetry.finders.network import features_last, is_dense
from metaopt.symmetry.functional import call_with, evaluating
from metaopt.symmetry.nested import Inputs, arguments_of, as_inputs, tensors_in
from metaopt.wrappers import unwrapped

PER = ("tensor", "channel", "group")
"""What shares the size of a step: a tensor, an output channel, or 32 weights of one."""

GROUP = 32
"""How many weights of an output channel are a group."""

MOST_BITS = 16


def check_rounding(bits: object, per: object) -> None:
    """Check the options of a rounding.

    Args:
        bits: a whole number from 2 to 16.
        per: one of :data:`PER`.

    Raises:
        UserError: for others.
    """
    check_whole("bits", bits, 2)
    if isinstance(bits, int) and bits > MOST_BITS:
        raise UserError(f"expected 2 to {MOST_BITS} bits, got {bits}: more round nothing")
    if per not in PER:
        raise UserError(unknown("a part that shares its step", per, PER))


def rounded(weight: Tensor, bits: int = 8, per: str = "tensor", channels: int = 0) -> Tensor:
    """Return a weight rounded to few bits.

    The gradient passes the rounding as if it were not there (a straight-through estimator); that of
    the size of the steps is exact.

    Args:
        weight: with two dimensions or more.
        bits: for each weight; 2 or more.
        per: what shares the size of a step: "tensor", "channel" or "group".
        channels: the dimension that counts the output channels.

    Example:
        >>> rounded(torch.tensor([[0.0, 0.5, 1.0], [0.01, 0.03, 0.0]]), bits=2)
        tensor([[0., 0., 1.],
                [0., 0., 0.]])
    """
    check_rounding(bits, per)
    levels = 2 ** (bits - 1) - 1
    rows = weight.movedim(channels, 0)
    flat = rows.flatten(1)
    parts, padding = flat, 0
    if per == "tensor":
        parts = flat.reshape(1, -1)
    elif per == "group":
        padding = -flat.shape[1] % GROUP
        parts = F.pad(flat, (0, padding)).reshape(-1, GROUP)
    largest = parts.abs().amax(dim=1, keepdim=True)
    step = torch.where(largest > 0, largest, 1.0) / levels
    units = parts / step
    units = units + (units.round() - units).detach()
    back = (units * step).reshape(flat.shape[0], -1)
    back = back[:, : flat.shape[1]] if padding else back.reshape(flat.shape)
    result: Tensor = back.reshape(rows.shape).movedim(0, channels)
    return result


def rounded_weights(model: nn.Module) -> dict[str, int]:
    """Return the names of the weights that are rounded, and which dimension counts their channels.

    They are those of Linear and convolutional layers, and of attention.

    Args:
        model: the module.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, int] = {}
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            for own in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
                weight = module._parameters.get(own)
                if weight is not None:
                    found[names[id(weight)]] = 0
        weight = module._parameters.get("weight")
        if weight is None or id(weight) not in names:
            continue
        if is_dense(module):
            found[names[id(weight)]] = int(features_last(module))
        elif isinstance(module, nn.modules.conv._ConvNd):
            found[names[id(weight)]] = int(module.transposed)
    return found


class RoundedOutputs:
    """What a network gives with rounded weights, compared with what it gives with its own.

    Args:
        model: the module, without wrappers; it is not changed.
        x: what it is called with.
        bits: for each weight.
        per: what shares the size of a step.
    """

    def __init__(self, model: nn.Module, x: Inputs, bits: int, per: str) -> None:
        check_rounding(bits, per)
        self.model, self.x, self.bits, self.per = model, x, bits, per
        self.channels = rounded_weights(model)
        self.weights = {n: model.get_parameter(n).detach().clone() for n in self.channels}
        with torch.no_grad():
            self.exact = self._outputs({})

    def error(self, moved: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return ||F(rounded) - F|| / ||F||, differentiable in the weights.

        Args:
            moved: other values of some parameters, before they are rounded.
        """
        weights = {**self.weights, **(moved or {})}
        for name, channels in self.channels.items():
            weights[name] = rounded(weights[name], self.bits, self.per, channels)
        outputs = self._outputs(weights)
        size: Tensor = self.exact.norm().clamp(min=torch.finfo(self.exact.dtype).tiny)
        change: Tensor = (outputs - self.exact).norm()
        return change / size

    def _outputs(self, values: Mapping[str, Tensor]) -> Tensor:
        names: Sequence[str] = list(values)
        args, kwargs = arguments_of(self.x)
        with evaluating(self.model):
            result: Any = call_with(self.model, names, list(values.values()), args, kwargs)
        rows = [t.reshape(-1).double() for t in tensors_in(result) if t.is_floating_point()]
        if not rows:
            raise UserError(
                f"expected a model that gives floating-point tensors, got "
                f"{type(result).__name__}: wrap it in a module that gives some"
            )
        return torch.cat(rows)


def rounding_error(model: nn.Module, *inputs: Any, bits: int = 8, per: str = "tensor") -> float:
    """Return the relative change of what a network gives by rounding its weights.

    Args:
        model: the module; it is not changed.
        *inputs: what it is called with.
        bits: for each weight.
        per: what shares the size of a step: "tensor", "channel", or "group" of 32 weights.

    Raises:
        UserError: without inputs.
    """
    x = as_inputs(inputs)
    if x is None:
        raise UserError("expected inputs to measure an error on, got none: give a batch")
    with torch.no_grad():
        return float(RoundedOutputs(unwrapped(model), x, bits, per).error())
