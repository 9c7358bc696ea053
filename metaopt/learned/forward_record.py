"""Records of what a network was given and gave in the forward pass that was differentiated."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from metaopt.replicas import ALONE, Replicas, replicas_now
from metaopt.symmetry.nested import tensors_in
from metaopt.wrappers import is_compiled, layers_of_wrapping


class ForwardRecord(NamedTuple):
    """What a forward pass was given and gave; tensors are detached.

    Attributes:
        arguments, keywords: what the network was called with.
        output: the output F: of several tensors that are differentiable and no scalars, such as
            the logits beside a loss, the one whose gradient came first.
        output_gradient: dL/dF, of the output's shape, where the pass was differentiated.
        alone: whether no other pass went into the same gradients.
        cast_to: the dtype of autocast in this pass; None where it was off.
        replicas: the processes that made this pass together, each with its part of the batch.
        place: of the output among all that are differentiable and no scalars.
    """

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    output: Tensor | None = None
    output_gradient: Tensor | None = None
    alone: bool = True
    cast_to: torch.dtype | None = None
    replicas: Replicas = ALONE
    place: int = 0

    @property
    def x(self) -> Tensor | None:
        """The first tensor among the arguments, which is taken to be the batch, or None."""
        return next(iter(tensors_in((self.arguments, self.keywords))), None)

    def autocast(self) -> torch.autocast:
        """Return a context in which autocast is as it was in this pass."""
        device = "cpu" if self.x is None else self.x.device.type
        return torch.autocast(device, self.cast_to, enabled=self.cast_to is not None)


class ForwardRecorder:
    """Keeps a record of the last forward pass of a model that was differentiated.

    A pass under ``no_grad`` leaves no record. Neither does a pass whose output is never
    differentiated. The hook is removed with the recorder. It is on what ``torch.compile`` returned,
    if that was given, and else on the model inside all wrappers.

    Args:
        model: the network, as the user gave it; None records nothing.

    Attributes:
        last: the record of the last differentiated pass.
        passes: how many passes were differentiated since :meth:`take` was called.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self.last: ForwardRecord | None = None
        self.passes = 0
        self.replicas = ALONE
        if model is not None:
            watched = _watched(model)
            watch = _Hook(self, watched)
            handle = watched.register_forward_hook(watch, with_kwargs=True)
            weakref.finalize(self, handle.remove)
            if compiled_before(watched):
                torch.compiler.reset()  # code that was compiled without the hook would go on
            for wrapper in layers_of_wrapping(model):
                if isinstance(wrapper, DistributedDataParallel):
                    self.replicas = Replicas(wrapper.process_group)

    def take(self) -> ForwardRecord | None:
        """Return the last pass that was differentiated since the last call, or None."""
        last, passes = self.last, self.passes
        self.last, self.passes = None, 0
        return None if last is None else last._replace(alone=passes == 1)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Forget, at the end of a ``with`` block, the passes that were made inside it."""
        kept = self.last, self.passes
        try:
            yield
        finally:
            self.last, self.passes = kept


class _Hook:
    """The forward hook; a copy of the model has one that does nothing."""

    def __init__(
        self, recorder: ForwardRecorder | None = None, model: nn.Module | None = None
    ) -> None:
        self._recorder = None if recorder is None else weakref.ref(recorder)
        self._model = None if model is None else weakref.ref(model)

    def __call__(
        self, model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any
    ) -> None:
        recorder = None if self._recorder is None else self._recorder()
        own = None if self._model is None else self._model()
        if recorder is None or model is not own or not torch.is_grad_enabled():
            return
        outputs = differentiable(output)
        if not outputs:
            return
        device = outputs[0].device.type
        on = torch.is_autocast_enabled(device)
        seen = ForwardRecord(
            _detached(arguments),
            _detached(keywords),
            cast_to=torch.get_autocast_dtype(device) if on else None,
            replicas=replicas_now() or recorder.replicas,
        )
        chosen: list[int] = []  # the place of the first one that is differentiated

        def watch(place: int, given: Tensor) -> None:
            kept, version = given.detach(), given._version
            if place == 0:
                kept = kept.clone()  # it may be changed in place

            def differentiated(gradient: Tensor) -> None:
                if not chosen and (place == 0 or kept._version == version):
                    chosen.append(place)
                if chosen == [place]:
                    recorder.last = seen._replace(
                        output=kept.clone() if place else kept,
                        place=place,
                        output_gradient=gradient.detach().clone(),
                    )
                    recorder.passes += 1

            given.register_hook(differentiated)  # type: ignore[no-untyped-call]

        for place, given in enumerate(outputs):
            watch(place, given)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        return _Hook()

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()


def differentiable(output: Any) -> list[Tensor]:
    """Return the tensors of an output that are differentiable and no scalars, in order.

    Args:
        output: what a module gives.
    """
    return [part for part in tensors_in(output) if part.requires_grad and part.dim()]


def _watched(model: nn.Module) -> nn.Module:
    """The module whose forward passes are recorded."""
    layers = layers_of_wrapping(model)
    return next((layer for layer in layers if is_compiled(layer)), layers[-1])


def compiled_before(model: nn.Module) -> bool:
    """Return whether ``torch.compile`` was given a module, so that it may not see new hooks.

    Args:
        model: the module.
    """
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None or is_compiled(model):
        return False
    if model._compiled_call_impl is not None:
        return True
    backends = dynamo.eval_frame.cached_backends.values()  # None is that of torch's own functions
    if not dynamo.convert_frame.input_codes.seen and all(own is None for own in backends):
        return False  # nothing was compiled; to look through all objects takes 0.1 s
    held = gc.get_referrers(model)
    return any(isinstance(by, dict) and by.get("_orig_mod") is model for by in held)


def _detached(value: Any) -> Any:
    """The same, with its tensors detached."""
    if isinstance(value, Tensor):
        return value.detach()
    if type(value) in (list, tuple):
        return type(value)(map(_detached, value))
    return {k: _detached(v) for k, v in value.items()} if type(value) is dict else value
