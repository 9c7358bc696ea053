"""A module as a function of some of its parameters: its outputs, and its loss on a batch.

Everything that evaluates a module at other weights uses this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaopt.errors import UserError
from metaopt.randomness import same_randomness
from metaopt.symmetry.teleportation import Outputs

LossOnBatch = Callable[[Tensor, Tensor], Tensor]
"""A function from (the model's output, y) to the loss, a scalar."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode inside the context, and restore all modes after it."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def call_with(
    model: nn.Module,
    names: Sequence[str],
    values: Sequence[Tensor],
    arguments: Sequence[Any],
    keywords: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> Any:
    """Call a module with other values of some of its parameters.

    The other parameters are the module's own. Buffers are copies, so a forward pass may change
    them.

    Args:
        model: the module.
        names: names of the parameters to replace.
        values: their values, in the same order.
        arguments: positional arguments of the forward pass.
        keywords: keyword arguments of the forward pass.
        dtype: what all floating-point parameters and buffers are converted to; None keeps theirs.
    """
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    tensors |= {name: buffer.clone() for name, buffer in model.named_buffers()}
    tensors |= dict(zip(names, values, strict=True))
    if dtype is not None:
        tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
    return functional_call(model, tensors, tuple(arguments), dict(keywords or {}))


class NetworkLoss:
    """The loss of a module on a batch, as a function of some of its parameters.

    The other parameters are read from the module at each call. Buffers are not changed. Dropout
    drops the same units at each evaluation.

    Args:
        model: the module.
        names: names of the parameters, in the order in which values are passed.
        loss_fn: a function from (the model's output, y) to the loss, a scalar.
        x: the batch that the model is called with.
        y: what ``loss_fn`` compares the output with.
    """

    def __init__(
        self, model: nn.Module, names: Sequence[str], loss_fn: LossOnBatch, x: Tensor, y: Tensor
    ) -> None:
        self.model, self.names, self.loss_fn, self.x, self.y = model, names, loss_fn, x, y
        self.seed = torch.random.initial_seed()

    def __call__(self, values: Sequence[Tensor]) -> Tensor:
        """Return the loss, a scalar."""
        with same_randomness(self.seed):
            return self.loss_fn(call_with(self.model, self.names, values, (self.x,)), self.y)


def module_loss(
    model: nn.Module, loss_fn: LossOnBatch, x: Tensor, y: Tensor
) -> tuple[list[nn.Parameter], NetworkLoss]:
    """Return a module's trainable parameters, and its loss on a batch as a function of them.

    Buffers are not changed. Dropout drops the same units at each evaluation.

    Args:
        model: the module.
        loss_fn: a function from (the model's output, y) to the loss, a scalar.
        x: the batch that the model is called with.
        y: what ``loss_fn`` compares the output with.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return list(trainable.values()), NetworkLoss(model, list(trainable), loss_fn, x, y)


@final
@dataclass(frozen=True, eq=False)
class ModuleOutputs(Outputs):
    """The outputs of a module in evaluation mode, as a function of some of its parameters.

    Arithmetic is float64, unless the forward pass works only in the model's own dtype.

    Attributes:
        model: the module.
        names: names of the parameters, in the order in which values are passed.
        x: the batch that the model is called with.
    """

    model: nn.Module
    names: tuple[str, ...]
    x: Tensor

    def __call__(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return the outputs as one row, ``(1, entries)``.

        Raises:
            UserError: if the model gives anything but one tensor.
        """
        with evaluating(self.model), torch.no_grad():
            try:
                wide = self.x.double() if self.x.is_floating_point() else self.x
                result = call_with(self.model, self.names, parameters, (wide,), dtype=torch.float64)
            except RuntimeError:  # a dtype written into the forward
                result = call_with(self.model, self.names, parameters, (self.x,))
        if not isinstance(result, Tensor):
            raise UserError(
                f"expected a model whose output is one tensor, got {type(result).__name__}: wrap "
                f"it in a module that returns what the loss takes"
            )
        return result.double().reshape(1, -1)

    def on(self, x: Tensor) -> ModuleOutputs:
        """Return the outputs on another batch, samples in rows. See :meth:`Outputs.on`."""
        return ModuleOutputs(self.model, self.names, x)
