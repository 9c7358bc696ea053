"""A module as a function of some of its parameters: its outputs, and its loss on a batch.

Everything that evaluates a module at other weights uses this file. A model may be called with a
tensor, a tuple of arguments or a mapping of them (:mod:`metaopt.symmetry.nested`), and it may give
a tensor, or tensors inside tuples, mappings and data classes. The loss function takes the loss out
of what it gives; a model that computes its loss itself needs no y.
"""

from __future__ import annotations

import copy
import re
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from metaopt.errors import UserError
from metaopt.randomness import same_randomness
from metaopt.symmetry.nested import Inputs, arguments_of, mapped, tensors_in
from metaopt.symmetry.teleportation import Outputs
from metaopt.wrappers import unwrapped

LossOnBatch = Callable[[Any, Any], Tensor]
"""A function from (what the model gives, y) to the loss, a tensor of one number.

Where the model computes its loss itself, y is None and the function takes the loss out of what the
model gives: ``lambda output, y: output.loss``."""


def eager() -> Any:
    """Return a context in which nothing runs compiled, so that it can be differentiated twice."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and the import takes seconds
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


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
    own_buffers: bool = False,
) -> Any:
    """Call a module with other values of some of its parameters.

    The other parameters are the module's own. A parameter has its value under all of its names, and
    in all modules that share it. Afterwards the module is as it was, also if the forward pass
    raises an exception: it holds its own parameters, buffers and other attributes. The pass sees
    copies of the buffers, so it may change them. Only what it changes inside of other objects stays
    changed, such as a list, or a weight that it writes into.

    Nothing runs compiled, as a compiled pass cannot be differentiated twice.

    Args:
        model: the module.
        names: names of the parameters to replace.
        values: their values, in the same order.
        arguments: positional arguments of the forward pass.
        keywords: keyword arguments of the forward pass.
        dtype: what all floating-point parameters and buffers are converted to; None keeps theirs.
        own_buffers: whether the pass sees the module's own buffers, for one that changes none of
            them: those of tasks hold all data.
    """
    modules = [(f"{path}." if path else "", module) for path, module in model.named_modules()]
    tensors: dict[str, Any] = {  # each module once, under one of its names
        before + name: tensor
        for before, module in modules
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
    }
    given = zip(names, values, strict=True)
    known = {id(tensors[n] if n in tensors else model.get_parameter(n)): v for n, v in given}
    for _, module in modules:
        for buffer in module._buffers.values():
            if buffer is not None and id(buffer) not in known:
                known[id(buffer)] = buffer if own_buffers else buffer.clone()
    tensors = {name: known.get(id(tensor), tensor) for name, tensor in tensors.items()}
    if dtype is not None:
        converted: dict[int, Any] = {id(t): _converted(t, dtype) for t in tensors.values()}
        tensors = {name: converted[id(tensor)] for name, tensor in tensors.items()}
    with _attributes_kept(model), eager():
        return functional_call(
            model, tensors, tuple(arguments), dict(keywords or {}), tie_weights=False
        )


@final
class FunctionalForm:
    """A module as a function of all of its parameters and buffers, for many calls.

    Each call is as by :func:`call_with`, at less expense. The module must keep its modules,
    parameters and buffers meanwhile.

    Args:
        model: the module.
        names: of all parameters and buffers, each under one of its names.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        named: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
        named |= dict(model.named_buffers(remove_duplicate=False))
        place = {id(named[name]): index for index, name in enumerate(names)}
        seen = {f"{path}." if path else "": module for path, module in model.named_modules()}
        self.model = model
        self._places = [  # each module once, under one of its names
            (before + name, place[id(tensor)])
            for before, module in seen.items()
            for name, tensor in (*module._parameters.items(), *module._buffers.items())
            if tensor is not None
        ]

    def __call__(self, values: Sequence[Tensor], *arguments: Any) -> Any:
        """Call the module with these values.

        Args:
            values: in the order of the names. Buffers among them may be changed in place.
            *arguments: of the forward pass.
        """
        tensors = {name: values[index] for name, index in self._places}
        with _attributes_kept(self.model), eager():
            return functional_call(self.model, tensors, arguments, tie_weights=False)


@contextmanager
def _attributes_kept(model: nn.Module) -> Iterator[None]:
    """Restore the attributes of all modules at the end, such as a counter, a cache or a state."""
    kept = [(vars(module), dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for now, before in kept:
            for name in now.keys() - before.keys():
                del now[name]
            now.update(before)


@contextmanager
def state_kept(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Let all that is called inside see copies of what modules keep outside their buffers.

    These are tensors, lists, dictionaries and sets that are attributes, such as a cache. Their
    entries are no copies.

    Args:
        model: the module.
        dtype: what floating-point tensors are converted to.
    """
    copies: dict[int, Any] = {}  # of what several modules share there is one
    kept = []
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in _OF_ALL_MODULES and type(value) in _COPIED:
                kept.append((vars(module), name, value))
    for own, name, value in kept:
        if id(value) not in copies:
            tensor = isinstance(value, Tensor)
            copied = _converted(value.clone(), dtype) if tensor else copy.copy(value)
            copies[id(value)] = copied
        own[name] = copies[id(value)]
    try:
        yield
    finally:
        for own, name, value in kept:
            own[name] = value


_OF_ALL_MODULES = frozenset(vars(nn.Module()))
_COPIED = (Tensor, list, dict, set, OrderedDict, defaultdict, deque)


def _converted(value: Any, dtype: torch.dtype) -> Any:
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if floating else value


class NetworkLoss:
    """The loss of a module on a batch, as a function of some of its parameters.

    The other parameters are read from the module at each call. Buffers are not changed. Dropout
    drops the same units at each evaluation. The loss can be differentiated twice wherever torch has
    a way to do it: attention and cuDNN's recurrent layers run in their slower forms.

    Args:
        model: the module.
        names: names of the parameters, in the order in which values are passed.
        loss_fn: a function from (what the model gives, y) to the loss, a tensor of one number.
        x: what the model is called with: a tensor, a tuple of arguments or a mapping of them.
        y: what ``loss_fn`` compares the output with; None where the model computes its loss.

    Raises:
        UserError: without y, for a loss of torch's own that needs it.
    """

    def __init__(
        self, model: nn.Module, names: Sequence[str], loss_fn: LossOnBatch, x: Inputs, y: Any = None
    ) -> None:
        self.model, self.names, self.loss_fn, self.x, self.y = model, names, loss_fn, x, y
        self.seed = torch.random.initial_seed()
        if y is None and _torchs_own(loss_fn):
            raise UserError(
                f"expected y, which {_name(loss_fn)} compares the output with, got none: give x "
                f"and y, or a loss_fn that takes the loss out of the output"
            )

    def __call__(self, values: Sequence[Tensor]) -> Tensor:
        """Return the loss, a scalar.

        Raises:
            UserError: if the loss function does not fit the output, or gives anything but one
                number.
        """
        with same_randomness(self.seed), differentiable_twice(self.model):
            output = call_with(self.model, self.names, values, *arguments_of(self.x))
            if not isinstance(output, Tensor) and _torchs_own(self.loss_fn):
                raise UserError(
                    f"expected a loss_fn that takes the loss out of a {type(output).__name__}, got "
                    f"{_name(self.loss_fn)}: give a function of the model's output and y"
                )
            loss: Any = self.loss_fn(output, self.y)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
            got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise UserError(
                f"expected a loss_fn that returns one number, got {got}: take the mean over the "
                f"samples, as reduction='mean' does, or take the loss out of the output"
            )
        wanted = torch.is_grad_enabled() and any(value.requires_grad for value in values)
        if wanted and not loss.requires_grad:
            raise UserError(
                "expected a loss that depends on the weights, got one without a gradient: do not "
                "detach it, nor take its item()"
            )
        return loss.reshape(())


def _torchs_own(loss_fn: object) -> bool:
    own = type(loss_fn) if isinstance(loss_fn, nn.Module) else loss_fn
    return str(getattr(own, "__module__", "")).startswith("torch.nn.")


def _name(function: object) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def module_loss(
    model: nn.Module, loss_fn: LossOnBatch, x: Inputs, y: Any = None
) -> tuple[list[nn.Parameter], NetworkLoss]:
    """Return a module's trainable parameters, and its loss on a batch as a function of them.

    Buffers are not changed. Dropout drops the same units at each evaluation.

    Args:
        model: the module, or a wrapper of it (:mod:`metaopt.wrappers`).
        loss_fn: a function from (what the model gives, y) to the loss, a tensor of one number.
        x: what the model is called with: a tensor, a tuple of arguments or a mapping of them.
        y: what ``loss_fn`` compares the output with; None where the model computes its loss.
    """
    model = unwrapped(model)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return list(trainable.values()), NetworkLoss(model, list(trainable), loss_fn, x, y)


@contextmanager
def differentiable_twice(model: nn.Module) -> Iterator[None]:
    """Let operations run in the forms of which torch knows the second derivative.

    Args:
        model: the module whose operations they are.
    """
    with ExitStack() as forms:
        if torch.is_grad_enabled():
            forms.enter_context(sdpa_kernel(SDPBackend.MATH))
            recurrent = (m for m in model.modules() if isinstance(m, nn.RNNBase))
            if any(p.is_cuda for module in recurrent for p in module.parameters()):
                forms.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


_ONCE = once_differentiable(lambda ctx: None).__code__
_NO_SECOND_DERIVATIVE = {
    r"derivative for '?(?:aten::)?_*(\w+?)(?:_backward)?'? is not implemented": "{0}{1}",
    r"aot_autograd does not currently support double backward": "a compiled function",
    r"Double backwards is not supported for CuDNN": "a recurrent layer of cuDNN",
    r"use_reentrant=True": "a checkpoint with use_reentrant=True",
    r"modified by an inplace operation.* output \d+ of (\w+)": "an in-place change of a {0}",
    r"does not require grad and does not have a grad_fn": "a gradient that depends on no weight",
}


@contextmanager
def second_derivatives(model: nn.Module | None = None) -> Iterator[None]:
    """Say in one line what cannot be differentiated twice, where torch raises an error for it.

    Searches and Hessians differentiate a loss twice.

    Args:
        model: the module whose layers the message names.

    Raises:
        UserError: in place of torch's own error; it names the operation.
    """
    try:
        yield
    except RuntimeError as error:
        for pattern, words in _NO_SECOND_DERIVATIVE.items():
            if found := re.search(pattern, str(error)):
                operation = (*found.groups(), "")[0]
                what = words.format(operation, _layers_of(model, operation))
                raise _refuse_twice(what) from error
        raise


def _refuse_twice(what: str) -> UserError:
    return UserError(
        f"expected a loss that torch can differentiate twice, as searches and Hessians do, got "
        f"{what}: replace it"
    )


def _layers_of(model: nn.Module | None, operation: str) -> str:
    """Return which layers are called as an operation, for people."""
    kind = operation.replace("_", "").lower()
    names = [
        name
        for name, module in ([] if model is None else model.named_modules())
        if type(module).__name__.lower() == kind
    ]
    rest = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f" (in {names[0]}{rest})" if names else ""


def check_differentiable_twice(value: Tensor, inputs: Sequence[Tensor]) -> None:
    """Check that no operation between inputs and a value is marked ``once_differentiable``.

    Autograd takes such an operation's second derivative for 0, without an error.

    Args:
        value: what is to be differentiated twice.
        inputs: with respect to what.

    Raises:
        UserError: for a ``torch.autograd.Function`` marked with ``once_differentiable``.
    """
    users: dict[Any, list[Any]] = {}
    waiting = [value.grad_fn]
    once = []
    while waiting:
        node = waiting.pop()
        function = getattr(node, "_forward_cls", None)
        if getattr(getattr(function, "backward", None), "__code__", None) is _ONCE:
            once.append((node, _name(function)))
        for following, _ in () if node is None else node.next_functions:
            if following not in users:
                waiting.append(following)
            users.setdefault(following, []).append(node)
    if not once:
        return
    reached = {get_gradient_edge(tensor).node for tensor in inputs}
    waiting = list(reached)
    while waiting:
        new = set(users.get(waiting.pop(), ())) - reached
        reached |= new
        waiting.extend(new)
    for node, name in once:
        if node in reached:
            raise _refuse_twice(f"{name}, which is marked once_differentiable")


@final
@dataclass(frozen=True, eq=False)
class ModuleOutputs(Outputs):
    """The outputs of a module in evaluation mode, as a function of some of its parameters.

    They are all floating-point tensors that the module gives, also inside tuples, mappings and data
    classes. Single numbers, such as the loss, are left out where there is anything else. Arithmetic
    is float64, unless the forward pass works only in the model's own dtype.

    Attributes:
        model: the module.
        names: names of the parameters, in the order in which values are passed.
        x: what the model is called with: a tensor, a tuple of arguments or a mapping of them.
    """

    model: nn.Module
    names: tuple[str, ...]
    x: Inputs

    def __call__(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return the outputs as one row, ``(1, entries)``.

        Raises:
            UserError: if the model gives no floating-point tensor.
        """
        with evaluating(self.model), torch.no_grad():
            try:
                result = self._call(parameters, torch.float64)
            except (RuntimeError, TypeError, ValueError, AssertionError):
                # A dtype may be written into the forward; any other error comes again.
                result = self._call(parameters, None)
        real = [torch.view_as_real(t) if t.is_complex() else t for t in tensors_in(result)]
        floating = [t for t in real if t.is_floating_point()]
        if not floating:
            raise UserError(
                f"expected a model that gives floating-point tensors, got {type(result).__name__}: "
                f"wrap it in a module that gives what the loss takes"
            )
        rows = [t.double().reshape(1, -1) for t in floating if t.dim()] or [
            torch.stack(floating).double().reshape(1, -1)
        ]
        return torch.cat([row.to(rows[0].device) for row in rows], dim=1)

    def _call(self, parameters: Sequence[Tensor], dtype: torch.dtype | None) -> Any:
        x = self.x if dtype is None else mapped(lambda t: _converted(t, dtype), self.x)
        return call_with(self.model, self.names, parameters, *arguments_of(x), dtype=dtype)

    def on(self, x: Inputs) -> ModuleOutputs:
        """Return the outputs on another batch, samples in rows. See :meth:`Outputs.on`."""
        return ModuleOutputs(self.model, self.names, x)
