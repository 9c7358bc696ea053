"""A teleportation of an ordinary network, and the output by which it is judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaopt.errors import UserError
from metaopt.symmetry.action import relative_change
from metaopt.symmetry.mode import evaluating


@dataclass(frozen=True, repr=False)
class NetworkMove:
    """From some parameters of a network to others."""

    model: nn.Module
    names: tuple[str, ...]
    x: Tensor
    before: list[Tensor]
    after: list[Tensor]
    refused: Tensor
    held: Tensor | None = None

    def __repr__(self) -> str:
        stayed = bool(self.refused.all()) or (self.held is not None and bool(self.held.all()))
        return f"{type(self).__name__}(defect={float(self.defect()):.2e}, stayed={stayed})"

    def defect(self, x: Tensor | None = None) -> Tensor:
        """||F(g.w) - F(w)|| / ||F(w)|| on the batch or on other ``x``, a scalar.

        In evaluation mode and in float64, at the weights as they are stored.
        """
        judge = Judge(self.model, self.names, self.x if x is None else x, self.before)
        return judge.defect(self.after)


class Judge:
    """How far other parameters of a network change its output on ``x``, which is computed once."""

    def __init__(
        self, model: nn.Module, names: tuple[str, ...], x: Tensor, start: Sequence[Tensor]
    ) -> None:
        self.model, self.names, self.x = model, names, x
        self._output = output(model, names, start, x)

    def defect(self, parameters: Sequence[Tensor]) -> Tensor:
        """||F(parameters) - F(start)|| / ||F(start)||, as :meth:`NetworkMove.defect`."""
        return relative_change(self._output, output(self.model, self.names, parameters, self.x))


def output(model: nn.Module, names: Sequence[str], values: Sequence[Tensor], x: Tensor) -> Tensor:
    """F(x) with the parameters ``names`` at ``values``, as one row, in evaluation mode.

    In float64 unless the forward insists on the model's own dtype.

    Raises:
        UserError: if the model gives anything but one tensor.
    """
    with evaluating(model), torch.no_grad():
        try:
            wide = x.double() if x.is_floating_point() else x
            tensors = with_values(model, names, values, torch.float64)
            result = functional_call(model, tensors, (wide,))
        except RuntimeError:  # a dtype written into the forward
            result = functional_call(model, with_values(model, names, values), (x,))
    if not isinstance(result, Tensor):
        raise UserError(
            f"expected a model whose output is one tensor, got {type(result).__name__}: wrap "
            f"it in a module that returns what the loss takes"
        )
    return result.double().reshape(1, -1)


def with_values(
    model: nn.Module,
    names: Sequence[str],
    values: Sequence[Tensor],
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """All parameters, some at other values, and copies of the buffers, which a forward may change.

    For ``torch.func.functional_call``.
    """
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    tensors |= {name: buffer.clone() for name, buffer in model.named_buffers()}
    tensors |= dict(zip(names, values, strict=True))
    if dtype is None:
        return tensors
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
