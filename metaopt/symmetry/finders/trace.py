"""The data flow of an ordinary module, read by ``torch.fx``.

The forward is traced on a copy that shares the parameters, so that the model, its buffers and
the random numbers stay as they are. Optional arguments of the forward keep their defaults.
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
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from metaopt.symmetry.finders.sharing import shared_parameters

LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
"""Modules that are layers to us, with their subclasses; the trace does not look inside."""

_SHAPES = {"size", "dim", "ndimension", "numel"}
_SHAPE_ATTRIBUTES = {"shape", "ndim", "dtype", "device"}


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, LAYERS) or super().is_leaf_module(m, module_qualified_name)


class _Watch(TorchDispatchMode):
    """Notes with which memory is computed for real, and so would be a constant in the graph."""

    def __init__(self, used: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.used = used

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        values = _items((args, kwargs or {}), depth=4)
        self.used |= {_memory(value) for value in values if isinstance(value, Tensor)}
        return func(*args, **(kwargs or {}))


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@dataclass(frozen=True)
class Trace:
    """The graph of a forward, with what is needed to judge who uses a value."""

    model: nn.Module
    graph: fx.Graph
    calls: Counter[int]  # id(module) -> how often it is called, also inside opaque modules
    opaque: dict[str, str]  # layer -> the called module that hides it from the trace
    direct: frozenset[int]  # ids of parameters that the forward itself reads
    shared: dict[int, tuple[str, ...]]  # id(parameter) -> all names that hold it, if several
    kept: frozenset[fx.Node]  # values that stay behind in an attribute of the model

    def layers(self) -> list[fx.Node]:
        """The calls of layers, in the order of the data flow."""
        return [node for node in self.graph.nodes if self.is_layer(node)]

    def is_layer(self, node: fx.Node) -> bool:
        """Whether the node calls a layer."""
        return isinstance(self.module(node), LAYERS)

    def module(self, node: fx.Node) -> nn.Module | None:
        """What the node calls, if it is a module."""
        return self.model.get_submodule(str(node.target)) if node.op == "call_module" else None

    def label(self, node: fx.Node) -> str:
        """The node for people: the name of a layer, the kind of anything else."""
        module = self.module(node)
        if module is None:
            target = node.target
            return target if isinstance(target, str) else getattr(target, "__name__", str(target))
        return str(node.target) if isinstance(module, LAYERS) else type(module).__name__

    def users(self, node: fx.Node) -> list[fx.Node]:
        """Who uses the value; asking for its shape is no use."""
        return [user for user in node.users if not is_shape_query(user)]


def is_shape_query(node: fx.Node) -> bool:
    """Whether the node reads only shape, dtype or device."""
    if node.op == "call_method":
        return node.target in _SHAPES
    return node.target is getattr and node.args[1] in _SHAPE_ATTRIBUTES


def first_input(node: fx.Node) -> fx.Node | None:
    """The value that the node works on."""
    value = node.args[0] if node.args else node.kwargs.get("input")
    return value if isinstance(value, fx.Node) else None


def batch_size_of(argument: object) -> fx.Node | None:
    """x, if the argument is x.size(0) or x.shape[0]."""
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
    """The data flow in one mode, or the reason why there is none."""
    used: set[int] = set()
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            twin = _twin(model)
            twin.train(training)
            with _Watch(used):
                graph = _Tracer().trace(twin, concrete_args=_defaults(model) or None)
    except Exception as error:  # whatever the forward of a user does to a symbolic value
        lines = str(error).strip().splitlines()
        return f"torch.fx cannot trace the forward: {lines[0] if lines else type(error).__name__}"
    read = [_attribute(twin, str(node.target)) for node in graph.nodes if node.op == "get_attr"]
    read += [p for p in model.parameters() if not is_lazy(p) and _memory(p) in used]
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
        frozenset(value.node for value in _kept(twin) if isinstance(value, fx.Proxy)),
    )


def _twin(model: nn.Module) -> nn.Module:
    """A copy with the same parameters, and copies of all else."""
    memo: dict[int, object] = {id(parameter): parameter for parameter in model.parameters()}
    for value in _kept(model):
        if isinstance(value, Tensor) and not value.is_leaf:
            memo[id(value)] = value  # deepcopy refuses it
    return copy.deepcopy(model, memo)


def _defaults(model: nn.Module) -> dict[str, object]:
    parameters = inspect.signature(model.forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _attribute(model: nn.Module, path: str) -> object:
    module, _, name = path.rpartition(".")
    return getattr(model.get_submodule(module), name)


def _kept(model: nn.Module) -> Iterator[object]:
    """All that the modules hold in attributes, also in lists, tuples and dictionaries."""
    for module in model.modules():
        yield from _items(vars(module), depth=4)


def _items(value: object, depth: int) -> Iterator[object]:
    if not isinstance(value, list | tuple | dict):
        yield value
    elif depth:
        for item in value.values() if isinstance(value, dict) else value:
            yield from _items(item, depth - 1)
