"""What may lie between two layers, as a module, a function or a method.

Each entry of the table :data:`STEPS` reads a call and returns a :class:`Step`, or says in plain
words why a group cannot act across it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from metaopt.symmetry.activations import Activation, Elementwise, LeakyReLU
from metaopt.symmetry.finders.trace import Trace, batch_size_of, first_input, is_shape_query

Kind = Literal["activation", "norm", "dropout", "pool", "pool to rows", "flatten", "rows", "same"]


@dataclass(frozen=True)
class Step:
    """One operation between two layers, with what a group needs to know to act across it.

    Attributes:
        label: the operation's name for people.
        kind: "activation", "norm", "dropout", "same" (changes nothing), "pool" (an image stays an
            image), "pool to rows" (one number a channel), "flatten" (a sample becomes one row) or
            "rows" (``view(-1, k)``).
        activation: the activation, if it is one fixed function.
        homogeneous: whether positive scales of units pass through.
        name: the name of a batch norm.
        width: the features of a batch norm, or k of ``view(-1, k)``.
        needs_image: whether it works on height and width.
    """

    label: str
    kind: Kind
    activation: Activation | None = None
    homogeneous: bool = True
    name: str = ""
    width: int | None = None
    needs_image: bool = False


@dataclass(frozen=True)
class Call:
    """A call in the trace of a model: what is called, and with which options.

    Attributes:
        trace: the data flow of the model.
        node: the node of the graph that makes the call.
        module: the module that is called; None for a function or a method.
    """

    trace: Trace
    node: fx.Node
    module: nn.Module | None

    @property
    def label(self) -> str:
        """The name of what is called, for people."""
        return self.trace.label(self.node)

    def option(self, name: str, position: int, default: object) -> Any:
        """Return an option of the call: an attribute of the module, or an argument.

        Args:
            name: the name of the attribute and of the keyword argument.
            position: the position of the argument.
            default: the value if the option is not given.
        """
        if self.module is not None:
            return getattr(self.module, name)
        args, kwargs = self.node.args, self.node.kwargs
        return kwargs.get(name, args[position] if len(args) > position else default)


Reader = Callable[[Call], Step | str]


def read(trace: Trace, node: fx.Node, value: fx.Node) -> Step | str:
    """Return the step that a call makes, or the reason why a group cannot act across it.

    Args:
        trace: the data flow of the model.
        node: the call.
        value: what it is called with.
    """
    module = trace.module(node)
    call = Call(trace, node, module)
    others = [n for n in node.all_input_nodes if n is not value and n.op != "get_attr"]
    if not all(map(_shape_arithmetic, others)):
        return f"{call.label} joins it with another value, as a skip connection does"
    if first_input(node) is not value:
        return f"{call.label} lies between, which is not known to keep a symmetry"
    if module is not None and (reason := altered(module)):
        return f"{call.label} lies between and {reason}"
    key: object = node.target if module is None else type(module)
    if key not in STEPS:
        return f"{call.label} lies between, which is not known to keep a symmetry"
    return STEPS[key](call)


def altered(module: nn.Module) -> str | None:
    """Return why a module may compute something else than its class does; None if it does not."""
    if module._forward_hooks or module._forward_pre_hooks:
        return "has forward hooks, which may change what it computes"
    return "has a forward of its own" if "forward" in vars(module) else None


def _shape_arithmetic(node: fx.Node) -> bool:
    """Return whether a number is computed from shapes alone."""
    inputs = node.all_input_nodes
    computed = node.op == "call_function" and bool(inputs) and all(map(_shape_arithmetic, inputs))
    return is_shape_query(node) or computed


def _fixed(kind: Kind) -> Reader:
    return lambda call: Step(call.label, kind)


def _refused(why: str) -> Reader:
    return lambda call: f"{call.label} lies between, which {why}"


def _relu(call: Call) -> Step | str:
    return Step(call.label, "activation", LeakyReLU(0.0))


def _leaky_relu(call: Call) -> Step | str:
    slope = call.option("negative_slope", 1, 0.01)
    if not isinstance(slope, float | int):
        return f"the slope of {call.label} is computed in the forward"
    return Step(call.label, "activation", LeakyReLU(float(slope)))


def _elementwise(call: Call) -> Step | str:
    target, args, kwargs = call.node.target, call.node.args[1:], dict(call.node.kwargs)
    if call.module is not None:
        activation = Elementwise(repr(call.module), _OfModule(call.module))
    else:
        if any(isinstance(value, fx.Node) for value in (*args, *kwargs.values())):
            return f"{call.label} lies between, with options computed in the forward"
        kwargs.pop("input", None)
        options = ", ".join(map(str, (*args, *(f"{k}={v}" for k, v in kwargs.items()))))
        run: Any = getattr(Tensor, target) if isinstance(target, str) else target
        activation = Elementwise(f"{call.label}({options})", _Called(run, args, kwargs))
    return Step(call.label, "activation", activation, homogeneous=False)


@dataclass(frozen=True, eq=False)
class _OfModule:
    """A module of torch as a function; two are equal if classes and options are."""

    module: nn.Module

    @property
    def known_as(self) -> type[nn.Module]:
        """The class that says what the derivative is, if it is known."""
        return type(self.module)

    def __call__(self, z: Tensor) -> Tensor:
        result: Tensor = self.module(z)
        return result

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _OfModule) or type(self.module) is not type(other.module):
            return False
        return repr(self.module) == repr(other.module)

    def __hash__(self) -> int:
        return hash(repr(self.module))


@dataclass(frozen=True)
class _Called:
    """A function with options; two are equal if function and options are."""

    run: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]

    @property
    def known_as(self) -> object:
        """The function that says what the derivative is, if it is known."""
        return None if self.args or self.kwargs else self.run

    def __call__(self, z: Tensor) -> Tensor:
        result: Tensor = self.run(z, *self.args, **self.kwargs)
        return result


def _batch_norm(call: Call) -> Step | str:
    assert call.module is not None
    if not call.module.affine:
        return f"{call.label} lies between without a scale of its own (affine=False)"
    name, width = str(call.node.target), call.option("num_features", 0, None)
    on_image = isinstance(call.module, nn.BatchNorm2d)
    return Step(call.label, "norm", name=name, width=width, needs_image=on_image)


def _pool(call: Call) -> Step | str:
    if call.module is not None and getattr(call.module, "return_indices", False):
        return f"{call.label} returns indices too"
    return Step(call.label, "pool", needs_image=True)


def _over_image(call: Call) -> Step | str:
    """Read ``x.mean((2, 3))`` or ``x.amax((-2, -1))``."""
    dims = call.option("dim", 1, None)
    if not isinstance(dims, list | tuple) or set(dims) not in ({2, 3}, {-2, -1}):
        return f"{call.label} lies between over other dimensions than height and width"
    kind: Kind = "pool" if call.option("keepdim", 2, False) else "pool to rows"
    return Step(call.label, kind, needs_image=True)


def _flatten(call: Call) -> Step | str:
    start = call.option("start_dim", 1, 0)
    if start != 1 or call.option("end_dim", 2, -1) not in (-1, 3):
        return f"{call.label} does not lay each sample out as one row"
    return Step(call.label, "flatten")


def _view(call: Call) -> Step | str:
    """Read ``x.view(x.size(0), -1)`` or ``x.view(-1, k)``, also as ``reshape``."""
    sizes = call.node.args[1:]
    if len(sizes) == 1 and isinstance(sizes[0], list | tuple):
        sizes = tuple(sizes[0])
    if len(sizes) == 2:
        source, before = batch_size_of(sizes[0]), first_input(call.node)
        if source is not None and before is not None and _keeps_batch(call.trace, source, before):
            return Step(call.label, "flatten")
        if sizes[0] == -1 and isinstance(sizes[1], int):
            return Step(call.label, "rows", width=sizes[1])
    return f"{call.label} does not surely lay each sample out as one row: use flatten(1)"


def _keeps_batch(trace: Trace, source: fx.Node, value: fx.Node) -> bool:
    """Return whether ``value`` has the samples of ``source``, in their order."""
    while value is not source:
        before = first_input(value)
        if before is None:
            return False
        if not trace.is_layer(value):
            step = read(trace, value, before)
            if isinstance(step, str) or step.kind == "rows":
                return False
        value = before
    return True


def _table(*rows: tuple[Reader, Iterable[object]]) -> dict[object, Reader]:
    return {key: reader for reader, keys in rows for key in keys}


_ELEMENTWISE = (nn.Tanh, torch.tanh, "tanh", nn.Sigmoid, torch.sigmoid, "sigmoid", nn.Softplus,
    F.softplus, nn.ELU, F.elu, nn.SELU, F.selu, nn.CELU, F.celu, nn.LogSigmoid, F.logsigmoid,
    nn.Softsign, F.softsign, nn.Tanhshrink, F.tanhshrink,
    nn.GELU, F.gelu, nn.SiLU, F.silu, nn.Mish, F.mish, nn.Hardtanh, F.hardtanh, nn.ReLU6,
    F.relu6, nn.Hardswish, F.hardswish, nn.Hardsigmoid, F.hardsigmoid, nn.Softshrink,
    F.softshrink, nn.Hardshrink, F.hardshrink, nn.Threshold)  # fmt: skip
_MIXES = (nn.LayerNorm, F.layer_norm, nn.RMSNorm, F.rms_norm, nn.GroupNorm, F.group_norm,
    nn.LocalResponseNorm, F.local_response_norm, nn.Softmax, F.softmax, torch.softmax, "softmax",
    nn.LogSoftmax, F.log_softmax, torch.log_softmax, "log_softmax")  # fmt: skip

STEPS: dict[object, Reader] = _table(
    (_relu, (nn.ReLU, F.relu, F.relu_, torch.relu, "relu", "relu_")),
    (_leaky_relu, (nn.LeakyReLU, F.leaky_relu, F.leaky_relu_)),
    # Slopes that are learned or random do not depend on the size of what comes in.
    (_fixed("activation"), (nn.PReLU, F.prelu, torch.prelu, nn.RReLU, F.rrelu)),
    (_elementwise, _ELEMENTWISE),
    (_batch_norm, (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)),
    (_fixed("dropout"), (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)),
    (_fixed("dropout"), (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)),
    (_pool, (nn.MaxPool2d, nn.AdaptiveMaxPool2d, F.max_pool2d, torch.max_pool2d)),
    (_pool, (F.adaptive_max_pool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)),
    (_pool, (F.avg_pool2d, F.adaptive_avg_pool2d)),
    (_over_image, ("mean", torch.mean, "amax", torch.amax)),
    (_flatten, (nn.Flatten, torch.flatten, "flatten")),
    (_view, ("view", "reshape", torch.reshape)),
    (_fixed("same"), (nn.Identity, "contiguous", "clone")),
    (_refused("normalises or mixes over the units"), _MIXES),
    (_refused("undoes the scale of each channel"), (nn.InstanceNorm1d, nn.InstanceNorm2d)),
    (_refused("undoes the scale of each channel"), (F.instance_norm,)),
)
"""The functions that read an operation between two layers.

The keys are module classes, functions and names of methods. To make an operation known, add a
function from a :class:`Call` to a :class:`Step`, or to the reason why a group cannot act across it.
"""
