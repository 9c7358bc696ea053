"""The data flow of an ordinary module, read by ``torch.fx``.

The forward pass is traced on a copy that shares the parameters. So the model, its buffers and the
random numbers stay as they are. Optional arguments of the forward pass keep their defaults.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from metaopt.symmetry.finders.plain import make_plain
from metaopt.symmetry.finders.sharing import has_memory, shared_parameters
from metaopt.symmetry.functional import eager

LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
"""Classes of modules that count as layers, with their subclasses: they are not traced inside."""

_SHAPES = {"size", "dim", "ndimension", "numel"}
_SHAPE_ATTRIBUTES = {"shape", "ndim", "dtype", "device"}


class _Tracer(fx.Tracer):
    """Traces a model; after an error ``inside`` is the innermost module that it came from."""

    inside: tuple[str, nn.Module] | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, LAYERS) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if m not in (self.submodule_paths or {}):  # such as a loss that the model does not hold
            return forward(*args, **kwargs)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.inside = self.inside or (self.path_of_module(m), m)
            raise


class _Watch(TorchDispatchMode):
    """Notes the memory of tensors that are computed for real, which would be constants."""

    def __init__(self, used: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.used = used

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        values = _items((args, kwargs or {}), depth=4)
        self.used |= {
            _memory(value) for value in values if isinstance(value, Tensor) and has_memory(value)
        }
        return func(*args, **(kwargs or {}))


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@dataclass(frozen=True)
class Trace:
    """The data flow of a module's forward pass, with what tells who uses a value.

    Attributes:
        model: the module.
        graph: the graph of ``torch.fx``.
        calls: how often each module is called, by its ``id``, also inside modules that are not
            traced.
        opaque: for each layer inside a module that is not traced, the name of that module.
        direct: ``id`` of each parameter that the forward pass itself reads.
        shared: for each parameter under several names, by its ``id``, all of these names.
        kept: values that stay in an attribute of the model.
    """

    model: nn.Module
    graph: fx.Graph
    calls: Counter[int]
    opaque: dict[str, str]
    direct: frozenset[int]
    shared: dict[int, tuple[str, ...]]
    kept: frozenset[fx.Node]

    def layers(self) -> list[fx.Node]:
        """Return the calls of layers, in the order of the data flow."""
        return [node for node in self.graph.nodes if self.is_layer(node)]

    def is_layer(self, node: fx.Node) -> bool:
        """Return whether a node calls a layer."""
        return isinstance(self.module(node), LAYERS)

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a node calls; None if it calls no module."""
        return self.model.get_submodule(str(node.target)) if node.op == "call_module" else None

    def label(self, node: fx.Node) -> str:
        """Return a node's name for people: the name of a layer, the kind of anything else."""
        module = self.module(node)
        if module is None:
            target = node.target
            return target if isinstance(target, str) else getattr(target, "__name__", str(target))
        return str(node.target) if isinstance(module, LAYERS) else type(module).__name__

    def users(self, node: fx.Node) -> list[fx.Node]:
        """Return the nodes that use a value; asking for its shape does not count."""
        return [user for user in node.users if not is_shape_query(user)]


def is_shape_query(node: fx.Node) -> bool:
    """Return whether a node reads only shape, dtype or device."""
    if node.op == "call_method":
        return node.target in _SHAPES
    return node.target is getattr and node.args[1] in _SHAPE_ATTRIBUTES


def first_input(node: fx.Node) -> fx.Node | None:
    """Return the value that a node works on."""
    value = node.args[0] if node.args else node.kwargs.get("input")
    return value if isinstance(value, fx.Node) else None


def batch_size_of(argument: object) -> fx.Node | None:
    """Return x if the argument is ``x.size(0)`` or ``x.shape[0]``, else None."""
    if not isinstance(argument, fx.Node):
        return None
    if argument.target == "size" and argument.args[1:] == (0,):
        return first_input(argument)
    if argument.target is operator.getitem and argument.args[1] == 0:
        shape = argument.args[0]
        if isinstance(shape, fx.Node) and shape.args[1:] in ((), ("shape",)):
            return first_input(shape) if is_shape_query(shape) else None
    return None


def trace(model: nn.Module, training: bool) -> Trace | str:
    """Return the data flow of a module in one mode, or the reason why it cannot be traced.

    Args:
        model: any module.
        training: whether to trace in training mode.
    """
    used: set[int] = set()
    own = inspect.unwrap(model.forward)  # of wrappers that keep the function, as autocast does
    if getattr(own, "__func__", own) is not inspect.unwrap(type(model).forward):
        return "the model has a forward of its own, which is not that of its class"
    tracer = _Tracer()
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), eager():
            copied = make_plain(_copy_sharing_parameters(model))
            copied.train(training)
            with _Watch(used):
                graph = tracer.trace(copied, concrete_args=_defaults(copied) or None)
    except Exception as error:  # whatever the forward of a user does to a symbolic value
        lines = str(error).strip().splitlines()
        of = "" if tracer.inside is None else " of {} ({})".format(*_named(*tracer.inside))
        reason = lines[0] if lines else type(error).__name__
        return f"torch.fx cannot trace the forward{of}: {reason}"
    read = [_attribute(copied, str(node.target)) for node in graph.nodes if node.op == "get_attr"]
    read += [p for p in model.parameters() if has_memory(p) and _memory(p) in used]
    called = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    calls: Counter[int] = Counter()
    opaque = {}
    for name in called:
        for inner, module in model.get_submodule(name).named_modules():
            calls[id(module)] += 1
            if inner and isinstance(module, LAYERS):
                opaque[f"{name}.{inner}"] = name
    return Trace(
        model,
        graph,
        calls,
        opaque,
        frozenset(id(value) for value in read),
        shared_parameters(model),
        frozenset(value.node for value in _kept(copied) if isinstance(value, fx.Proxy)),
    )


def _named(path: str, module: nn.Module) -> tuple[str, str]:
    return path, type(module).__name__


def _copy_sharing_parameters(model: nn.Module) -> nn.Module:
    """Return a copy of a module with the same parameters, and with copies of all else."""
    memo: dict[int, object] = {id(parameter): parameter for parameter in model.parameters()}
    for value in _kept(model):
        if isinstance(value, Tensor) and not value.is_leaf:
            memo[id(value)] = value  # deepcopy refuses it
    return copy.deepcopy(model, memo)


def _defaults(model: nn.Module) -> dict[str, object]:
    """The optional arguments; where all are optional, the first one is what the model works on."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    fixed = parameters[1:] if all(p.default is not p.empty for p in parameters) else parameters
    return {p.name: p.default for p in fixed if p.default is not p.empty}


def _attribute(model: nn.Module, path: str) -> object:
    module, _, name = path.rpartition(".")
    return getattr(model.get_submodule(module), name)


def _kept(model: nn.Module) -> Iterator[object]:
    """Yield all that the modules hold in attributes, also in lists, tuples and dictionaries."""
    for module in model.modules():
        yield from _items(vars(module), depth=4)


def _items(value: object, depth: int) -> Iterator[object]:
    if not isinstance(value, list | tuple | dict):
        yield value
    elif depth:
        for item in value.values() if isinstance(value, dict) else value:
            yield from _items(item, depth - 1)
