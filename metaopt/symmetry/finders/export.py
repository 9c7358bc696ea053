"""The data flow of a module on given inputs, by ``torch.export``, where ``torch.fx`` cannot trace.

An exported program is a graph of aten operators with the parameters as inputs. It is written again
in the form that :func:`trace` gives: a call of a module where an operator has exactly the weights
of one, and torch's function where there is one. It follows the way that these inputs take through
the forward pass, so what is concluded from it has to be verified.
"""

from __future__ import annotations

import operator
import warnings
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from metaopt.symmetry.finders.sharing import shared_parameters
from metaopt.symmetry.finders.trace import Trace
from metaopt.symmetry.functional import call_with, eager, evaluating
from metaopt.symmetry.nested import Inputs, arguments_of

_LAYERS: dict[str, tuple[type[nn.Module], ...]] = {
    "linear": (nn.Linear,),
    "conv1d": (nn.Conv1d,),
    "conv2d": (nn.Conv2d,),
    "conv3d": (nn.Conv3d,),
    "conv_transpose1d": (nn.ConvTranspose1d,),
    "conv_transpose2d": (nn.ConvTranspose2d,),
    "conv_transpose3d": (nn.ConvTranspose3d,),
    "batch_norm": (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
}
_FUNCTIONS: dict[str, Any] = {
    "add": operator.add, "add_": operator.add, "relu": F.relu, "relu_": F.relu,
    "leaky_relu": F.leaky_relu, "leaky_relu_": F.leaky_relu, "prelu": F.prelu,
    "dropout": F.dropout, "dropout_": F.dropout, "feature_dropout": F.dropout2d,
    "max_pool2d": torch.max_pool2d, "avg_pool2d": F.avg_pool2d,
    "adaptive_avg_pool2d": F.adaptive_avg_pool2d, "mean": torch.mean, "amax": torch.amax,
    "flatten": torch.flatten, "cat": torch.cat, "mul": operator.mul, "mul_": operator.mul,
    "chunk": torch.chunk, "split": torch.split, "split_with_sizes": torch.split,
    "narrow": torch.narrow, "unbind": torch.unbind, "glu": F.glu, "transpose": torch.transpose,
    "channel_shuffle": F.channel_shuffle, "view": torch.reshape, "reshape": torch.reshape,
    "_unsafe_view": torch.reshape,
}  # fmt: skip
_SAME = ("alias", "clone", "contiguous", "detach", "detach_", "lift_fresh_copy")
_CAST = ("to", "_to_copy", "type_as")
_VIEWS = ("view", "reshape", "_unsafe_view")
_RELUS = ("relu", "relu_", "leaky_relu", "leaky_relu_", "_prelu_kernel", "prelu", "glu")


def exported(model: nn.Module, x: Inputs) -> Trace | str:
    """Return the data flow of a module on inputs, or the reason why it is not known.

    The module is in evaluation mode, and is not changed. An export takes seconds, so there is none
    where units could have no site: without a ReLU or a GLU, and with one convolution at most.

    Args:
        model: the module.
        x: what it is called with.
    """
    args, kwargs = arguments_of(x)
    with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        called = _Called()
        with called:
            call_with(model, [], [], args, kwargs)
        if called.names.isdisjoint(_RELUS) and called.convolutions < 2:
            return "no ReLU was called, and one convolution at most"
        try:
            with warnings.catch_warnings(), eager():
                warnings.simplefilter("ignore")
                program: Any = torch.export.export(model, args, kwargs)
        except Exception as error:  # whatever the forward of a user does to a symbolic value
            lines = str(error).strip().splitlines() or [type(error).__name__]
            return f"torch.export cannot trace the forward: {lines[0]}"
    return _Written(model, program).trace()


class _Called(TorchDispatchMode):
    """Notes the names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()
        self.convolutions = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = _name(func)
        self.names.add(name)
        self.convolutions += "convolution" in name
        return func(*args, **(kwargs or {}))


class _Written:
    """An exported program, written again as calls of modules and of functions of torch."""

    def __init__(self, model: nn.Module, program: Any) -> None:
        self.model = model
        self.graph = fx.Graph()
        self.calls: Counter[int] = Counter()
        self.values: dict[fx.Node, Any] = {}
        signature = program.graph_signature
        self.held = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.nodes = list(program.graph_module.graph.nodes)

    def trace(self) -> Trace:
        """Return the data flow."""
        for node in self.nodes:
            new = self._written(node)
            if isinstance(new, fx.Node):
                new.meta.update(node.meta)
            self.values[node] = new
        read = {str(node.target) for node in self.graph.nodes if node.op == "get_attr"}
        direct = [p for name, p in self.model.named_parameters() if name in read]
        return Trace(
            self.model,
            self.graph,
            self.calls,
            {},
            frozenset(map(id, direct)),
            shared_parameters(self.model),
            frozenset(),
        )

    def _written(self, node: fx.Node) -> Any:
        """Return what stands for a node: a value, or the name of a tensor that the model holds."""
        if node.op == "placeholder":
            return self.held.get(node.name) or self.graph.placeholder(node.name)
        if node.op == "output":
            return self.graph.output(self._mapped(node.args[0]))
        if node.op != "call_function":
            return self.graph.placeholder(node.name)
        name = _name(node.target)
        first = node.args[0] if node.args else None
        if name.startswith("_assert"):
            return None
        if isinstance(first, fx.Node):
            same = name in _SAME or (name in _CAST and _dtype(first) == _dtype(node))
            if same:
                return self.values[first]
            if (layer := self._layer(name, node)) is not None:
                self.calls[id(self.model.get_submodule(layer))] += 1
                return self.graph.call_module(layer, (self._mapped(first),))
            if name in _VIEWS and _lays_out_rows(first, node):
                return self.graph.call_function(torch.flatten, (self._mapped(first), 1))
            if name == "slice" and isinstance(self.values[first], fx.Node):
                return self._sliced(first, node)
        target = _FUNCTIONS.get(name, node.target)
        args, kwargs = self._mapped(node.args), self._mapped(node.kwargs)
        return self.graph.call_function(target, args, kwargs)

    def _sliced(self, first: fx.Node, node: fx.Node) -> Any:
        """Return an index of one dimension; the value itself where all of it is taken."""
        if _shape(first) == _shape(node):
            return self.values[first]
        given: list[Any] = [*node.args[1:], *[None] * 4]
        before = (given[0] or 0) % len(_shape(first))
        index = (*[slice(None)] * before, slice(*given[1:4]))
        return self.graph.call_function(operator.getitem, (self._mapped(first), index))

    def _layer(self, name: str, node: fx.Node) -> str | None:
        """Return the name of the module whose weights an operator has, and no others."""
        given = [
            self.values[value] if isinstance(value, fx.Node) else value
            for value in (*node.args[1:3], None)[:2]
        ]
        if name not in _LAYERS or not isinstance(given[0], str):
            return None
        holder = given[0].rpartition(".")[0]
        module = self.model.get_submodule(holder)
        own = [
            f"{holder}.{part}" if module._parameters.get(part) is not None else None
            for part in ("weight", "bias")
        ]
        return holder if type(module) in _LAYERS[name] and given == own else None

    def _mapped(self, value: Any) -> Any:
        """Return arguments with what stands for their nodes."""
        return fx.map_arg(value, self._of)

    def _of(self, node: fx.Node) -> Any:
        new = self.values[node]
        return self.graph.get_attr(new) if isinstance(new, str) else new


def _name(operator_: Any) -> str:
    """Return the name of an operator without its overload, such as "conv2d"."""
    packet = getattr(operator_, "overloadpacket", operator_)
    return str(getattr(packet, "__name__", packet))


def _shape(node: fx.Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _dtype(node: fx.Node) -> object:
    return getattr(node.meta.get("val"), "dtype", node)


def _lays_out_rows(before: fx.Node, after: fx.Node) -> bool:
    """Return whether a view makes each sample one row."""
    old, new = _shape(before), _shape(after)
    return len(old) > 2 and len(new) == 2 and old[0] == new[0]
