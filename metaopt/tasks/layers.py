"""What layers of a network are given, and the gradients of what they give: one recorder for all.

It works in the same way on a plain module in a user's loop, on stacked copies of a task, and on a
module that ``higher`` has patched. Rules that look at second moments of inputs and of output
gradients, as K-FAC and EK-FAC do, are made from this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from metaopt.errors import UserError

LAYERS = (nn.Linear, _ConvNd)


class LayerPass(NamedTuple):
    """One call of a layer in a forward pass; tensors are detached.

    Attributes:
        inputs: what it was given, ``(*copies, samples, ...)``; stacked copies stand first.
        output_gradients: of the loss in what it gave, of that shape; None before the backward pass.
    """

    inputs: Tensor
    output_gradients: Tensor | None


@dataclass
class _Call:
    inputs: Tensor
    gradients: list[Tensor | None]

    def differentiated(self, copy: int, gradient: Tensor) -> None:
        self.gradients[copy] = gradient.detach()

    def gradient(self) -> Tensor | None:
        known = [gradient for gradient in self.gradients if gradient is not None]
        if len(known) < len(self.gradients):
            return None
        return known[0] if len(known) == 1 else torch.stack(known)


@final
class LayerRecorder:
    """Records what Linear layers and convolutions are given, and the gradients of their outputs.

    Args:
        model: any module; or :class:`~metaopt.tasks.StackedTasks`, also once ``higher`` has patched
            it.

    Raises:
        UserError: if there is no such layer.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> recorder = LayerRecorder(model)
        >>> model(torch.ones(5, 3)).sum().backward()
        >>> calls = recorder.take()["0"]
        >>> calls[0].inputs.shape, calls[0].output_gradients.shape
        (torch.Size([5, 3]), torch.Size([5, 4]))
    """

    def __init__(self, model: nn.Module) -> None:
        self._calls: dict[str, list[_Call]] = {}
        self._stacked: list[tuple[str, Tensor, Tensor]] | None = None
        inner: nn.Module = getattr(model, "shell", model)
        if inner is not model:
            model.recorder = self  # type: ignore[assignment]
        layers = [(name, own) for name, own in inner.named_modules() if isinstance(own, LAYERS)]
        if not layers:
            raise UserError(
                f"expected a module with Linear layers or convolutions, got "
                f"{type(inner).__name__} without: record another"
            )
        self._handles = [
            layer.register_forward_hook(partial(self._called, name)) for name, layer in layers
        ]

    def take(self) -> dict[str, list[LayerPass]]:
        """Return the calls of each layer since the last time, in order, and forget them."""
        calls, self._calls = self._calls, {}
        return {
            name.removeprefix("network."): [LayerPass(call.inputs, call.gradient()) for call in own]
            for name, own in calls.items()
        }

    def remove(self) -> None:
        """Stop recording."""
        for handle in self._handles:
            handle.remove()

    def saw(self, name: str, inputs: Tensor, outputs: Sequence[Tensor]) -> None:
        """Record a call.

        Args:
            name: of the layer.
            inputs: what it was given.
            outputs: what it gave, with its graph: one tensor, or one for each copy.
        """
        call = _Call(inputs.detach(), [None] * len(outputs))
        self._calls.setdefault(name, []).append(call)
        for copy, output in enumerate(outputs):
            if output.requires_grad:
                output.register_hook(partial(call.differentiated, copy))  # type: ignore[no-untyped-call]

    @contextmanager
    def mapped(self) -> Iterator[list[tuple[str, Tensor, Tensor]]]:
        """Collect calls under ``torch.vmap`` inside a ``with`` block, where tensors have no copies.

        Yields:
            The list of (name, inputs, output), which the mapped function has to return.
        """
        self._stacked = []
        try:
            yield self._stacked
        finally:
            self._stacked = None

    def _called(self, name: str, layer: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        inputs = arguments[0]
        if self._stacked is not None:
            self._stacked.append((name, inputs, output))
        elif torch.is_grad_enabled():
            self.saw(name, inputs, [output])
