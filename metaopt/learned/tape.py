"""What a network was given and gave in the forward pass that was differentiated."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Pass(NamedTuple):
    """A forward pass; tensors are detached."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    output: Tensor | None = None  # where it was one tensor
    output_gradient: Tensor | None = None  # dL/dF, where it was differentiated
    alone: bool = True  # whether no other pass went into the same gradients

    @property
    def x(self) -> Tensor | None:
        """The first tensor that went in."""
        values = (*self.arguments, *self.keywords.values())
        return next((value for value in values if isinstance(value, Tensor)), None)


class Tape:
    """Keeps the last pass of a model that was differentiated; its copies keep nothing.

    A pass under ``no_grad`` leaves no trace, and one in grad mode that nothing is differentiated
    of leaves none after the next that is.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self._model: Callable[[], nn.Module | None] = lambda: None
        self._last: Pass | None = None
        self.passes = 0  # differentiated since the last :meth:`take`
        if model is not None:
            self._model = weakref.ref(model)
            self._handle = model.register_forward_hook(self, with_kwargs=True)

    def __call__(
        self, model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any
    ) -> None:
        """The forward hook."""
        if model is not self._model() or not torch.is_grad_enabled():
            return
        if not isinstance(output, Tensor) or not output.requires_grad:
            return
        seen = Pass(
            tuple(map(_detached, arguments)),
            {name: _detached(value) for name, value in keywords.items()},
            output.detach().clone(),
        )

        def differentiated(gradient: Tensor) -> None:
            self._last = seen._replace(output_gradient=gradient.detach().clone())
            self.passes += 1

        output.register_hook(differentiated)  # type: ignore[no-untyped-call]

    def take(self) -> Pass | None:
        """The last pass that was differentiated since this was asked before."""
        last, passes = self._last, self.passes
        self._last, self.passes = None, 0
        return None if last is None else last._replace(alone=passes == 1)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tape:
        return Tape(None)

    def __reduce__(self) -> tuple[type[Tape], tuple[None]]:
        return Tape, (None,)


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
