"""Sites of units, scaled by positive numbers, across skips, depthwise and other convolutions.

Each value of the trace has a class: values of one class have the same units. A layer makes a class,
and so does a batch norm; what is positively homogeneous keeps it; a sum makes one of those of its
terms; a layer that uses a value reads its class. What else uses a value, such as the output of the
network, ends its class. A class that is left has one site, of all that make it and all that read
it.
"""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

from metaopt.symmetry.finders.steps import Step, altered, read
from metaopt.symmetry.finders.trace import Trace, first_input, is_shape_query
from metaopt.symmetry.finders.unit_values import Units, Value
from metaopt.symmetry.finders.unit_views import CONVS, TRANSPOSED, made_by, used_by
from metaopt.symmetry.site import LeftOut, MatrixView, Site

UNITS = "units"
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_NORMALISE = (F.batch_norm, torch.batch_norm)
_SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
_CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)
_POOLS = (nn.MaxPool1d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool3d, nn.Upsample)  # fmt: skip


class Flow:
    """One pass over a trace, value by value."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.values: dict[fx.Node, Value] = {}
        self.classes: list[Units] = []
        for node in trace.graph.nodes:
            self._visit(node)

    def sites(self) -> dict[Site | LeftOut, str]:
        """Return the sites of the classes that are left, and reasons for the others."""
        found: dict[Site | LeftOut, str] = {}
        for own in self.classes:
            if own.joined is not None or not own.made or not own.read:
                continue
            layers = (own.made[0][0], own.read[0][0])
            if own.ended:
                found[LeftOut(layers, own.ended)] = ""
                continue
            many = len(own.made) > 1 or len(own.read) > 1
            found[
                Site(
                    name=f"{', '.join(n for n, _ in own.made)} -> "
                    f"{', '.join(n for n, _ in own.read)}",
                    incoming=tuple(view for _, view in own.made),
                    outgoing=tuple(view for _, view in own.read),
                    between=None,
                    group="positive",
                    width=own.width,
                    layers=layers,
                    labels=tuple(dict.fromkeys(own.labels)) + ("a skip",) * many,
                    homogeneous=True,
                    kind=UNITS,
                )
            ] = ""
        return found

    def _new(self, name: str, width: int, view: MatrixView) -> Units:
        self.classes.append(Units(width, [(name, view)]))
        return self.classes[-1]

    def _visit(self, node: fx.Node) -> None:
        inputs = [n for n in node.all_input_nodes if n in self.values]
        module = self.trace.module(node)
        if node.op == "output" or node in self.trace.kept:
            self._end(inputs, "the network gives it")
        elif is_shape_query(node) or not (inputs or self._makes(node, module)):
            return
        elif isinstance(module, (nn.Linear, *CONVS, *TRANSPOSED)):
            self._layer(node, module, inputs)
        elif isinstance(module, _NORMS):
            self._norm(node, module, inputs)
        elif node.target in _SUMS:
            self._sum(node, inputs)
        elif node.target in _CONCATENATIONS:
            self._concatenation(node, inputs)
        elif node.target in _NORMALISE:
            self._functional_norm(node, inputs)
        else:
            self._step(node, inputs)

    @staticmethod
    def _makes(node: fx.Node, module: nn.Module | None) -> bool:
        layers = (nn.Linear, *CONVS, *TRANSPOSED, *_NORMS)
        return isinstance(module, layers) or node.target in _NORMALISE

    def _end(self, nodes: list[fx.Node], why: str) -> None:
        for node in nodes:
            self.values[node].end(why)

    def _layer(self, node: fx.Node, module: nn.Module, inputs: list[fx.Node]) -> None:
        name = str(node.target)
        why = self._obstacle(module, name)
        value = first_input(node)
        if inputs and (inputs != [value] or why):
            self._end(inputs, why or f"{name} does not take it as its input")
        elif inputs:
            value_in = self.values[inputs[0]]
            used = used_by(module, name, value_in.widths, value_in.layout)
            if isinstance(used, str):
                self._end(inputs, used)
            else:
                for part, view in zip(value_in.parts, used, strict=True):
                    part.root().read.append((name, view))
        made = None if why else made_by(module, name)
        if made is not None:
            layout = "last" if isinstance(module, nn.Linear) else "channels"
            self.values[node] = Value((self._new(name, *made),), layout)

    def _norm(self, node: fx.Node, module: nn.Module, inputs: list[fx.Node]) -> None:
        name = str(node.target)
        self._end(inputs, f"{name} undoes the scale of each channel")
        weight = module._parameters.get("weight")
        why = self._obstacle(module, name)
        before = self.values[inputs[0]] if inputs else None
        if weight is None or why or (before is not None and before.layout == "blocks"):
            return
        bias = MatrixView(f"{name}.bias", columns=())
        gains = MatrixView(f"{name}.weight", columns=(), bias=bias)
        own = self._new(name, weight.numel(), gains)
        layout = "channels" if before is None else before.layout
        self.values[node] = Value((own,), layout)

    def _functional_norm(self, node: fx.Node, inputs: list[fx.Node]) -> None:
        """Read ``F.batch_norm`` with parameters of the model, as subclasses of a batch norm do."""
        self._end(inputs, "batch_norm undoes the scale of each channel")
        first = 1 if node.target is torch.batch_norm else 3
        gain, shift = (_option(node, name, first + i) for i, name in enumerate(("weight", "bias")))
        before = self.values.get(first_input(node) or node)
        alone = all(
            isinstance(own, fx.Node) and own.op == "get_attr" and len(own.users) == 1
            for own in (gain, shift)
        )
        if not alone or (before is not None and before.layout == "blocks"):
            return
        assert isinstance(gain, fx.Node)
        assert isinstance(shift, fx.Node)
        name = str(gain.target).rpartition(".")[0]
        if self.trace.calls[id(self.trace.model.get_submodule(name))] > 1:
            return
        width = self.trace.model.get_parameter(str(gain.target)).numel()
        bias = MatrixView(str(shift.target), columns=())
        own = self._new(name, width, MatrixView(str(gain.target), columns=(), bias=bias))
        self.values[node] = Value((own,), "channels" if before is None else before.layout)

    def _sum(self, node: fx.Node, inputs: list[fx.Node]) -> None:
        terms = [a for a in node.args[:2] if isinstance(a, fx.Node)]
        values = [self.values.get(term) for term in terms]
        first = values[0] if values else None
        whole = len(terms) == 2 and not node.kwargs and all(v is not None for v in values)
        if not whole or first is None:
            self._end(inputs, "a sum adds to it what has no such units")
            return
        second = values[1]
        assert second is not None
        if first.layout != second.layout or first.widths != second.widths:
            self._end(inputs, "a sum adds to it units of another layout")
            return
        for one, other in zip(first.parts, second.parts, strict=True):
            one.join(other)
        self.values[node] = first

    def _concatenation(self, node: fx.Node, inputs: list[fx.Node]) -> None:
        """Read ``torch.cat`` along the units. A reader then uses each part by columns of its own.

        Rows may be of samples or of positions, of which the second dimension may be the last one.
        Where it is not, the reader does not have as many inputs as all parts together have units.
        """
        terms = _option(node, "tensors", 0)
        dim = _option(node, "dim", 1) or _option(node, "axis", 1) or 0
        values = [self.values.get(t) for t in terms] if isinstance(terms, list | tuple) else []
        parts = [value for value in values if value is not None]
        layouts = {value.layout for value in parts}
        if not parts or len(parts) < len(values):
            self._end(inputs, f"{node.name} joins it with what has no such units")
        elif layouts not in ({"channels"}, {"last"}) or dim not in (1, *[-1] * ("last" in layouts)):
            self._end(inputs, f"{node.name} does not surely join it along the units")
        else:
            self.values[node] = Value(tuple(p for v in parts for p in v.parts), layouts.pop())
            self.values[node].label("a concatenation")

    def _step(self, node: fx.Node, inputs: list[fx.Node]) -> None:
        value = inputs[0]
        own = self.values[value]
        if isinstance(self.trace.module(node), _POOLS) and own.layout == "channels":
            self.values[node] = own
            return
        step = read(self.trace, node, value)
        if isinstance(step, str) or len(inputs) > 1:
            self._end(inputs, step if isinstance(step, str) else f"{node.name} joins values")
            return
        layout = _layout(step, own)
        if layout is None:
            self._end(inputs, f"{step.label} is not positively homogeneous, or moves the units")
            return
        if step.kind == "activation":
            own.label(step.label)
        self.values[node] = Value(own.parts, layout)

    def _obstacle(self, module: nn.Module, name: str) -> str:
        if not {"weight", "bias"} <= module._parameters.keys() or "parametrizations" in dict(
            module.named_children()
        ):
            return f"the weight of {name} is computed from other tensors"
        if type(module) not in (nn.Linear, *CONVS, *TRANSPOSED, *_NORMS):
            return f"{name} is a {type(module).__name__}, which is not known"
        if reason := altered(module):
            return f"{name} {reason}"
        if self.trace.calls[id(module)] > 1:
            return f"{name} is called {self.trace.calls[id(module)]} times"
        if any(id(p) in self.trace.direct for p in module.parameters()):
            return f"the forward reads the weights of {name} outside of {name} too"
        return ""


def _option(node: fx.Node, name: str, place: int) -> object:
    return node.kwargs.get(name, node.args[place] if len(node.args) > place else None)


def _layout(step: Step, value: Value) -> str | None:
    """Return how the units are laid out after a step; None where their scale does not pass."""
    if not step.homogeneous or step.kind in ("norm", "rows"):
        return None
    if step.needs_image and value.layout != "channels":
        return None
    if step.kind == "pool to rows":
        return "last"
    if step.kind == "flatten":
        return {"channels": "blocks", "last": None, "blocks": "blocks"}[value.layout]
    return value.layout
