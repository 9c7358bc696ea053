"""Sites of units, scaled by positive numbers, across skips, depthwise and other convolutions.

Each value of the trace has classes: values of one class have the same units. A layer makes a class,
and so does a batch norm; what is positively homogeneous keeps it; a sum makes one of those of its
terms; a split cuts it; a layer that uses a value reads its class. What else uses a value, such as
the output of the network, ends its class. A class that is left has one site, of all that make it
and all that read it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import fx, nn

from metaopt.symmetry.finders.steps import read
from metaopt.symmetry.finders.trace import Trace, first_input, is_shape_query
from metaopt.symmetry.finders.unit_rules import NORMS, POOLS, layout_after, obstacle
from metaopt.symmetry.finders.unit_sites import sites_of
from metaopt.symmetry.finders.unit_splits import (
    GATES,
    NARROW,
    PIECES,
    Sizes,
    dimensions_of,
    halves,
    laid_out,
    option,
    pieces,
    sliced,
)
from metaopt.symmetry.finders.unit_values import (
    End,
    Segment,
    Units,
    Value,
    concatenated,
    fitted,
    product,
)
from metaopt.symmetry.finders.unit_views import (
    CONVS,
    TRANSPOSED,
    gains_of,
    group_of,
    made_by,
    obstacle_to_use,
    outputs_of,
    used_by,
)
from metaopt.symmetry.site import LeftOut, Site

_NORMALISE = (F.batch_norm, torch.batch_norm)
_SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
_PRODUCTS = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
_CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)
_LINEAR = ("same", "dropout", "flatten")

Reads = Callable[[fx.Node, Value, Sizes], list[Value] | Value | str]
"""Gives the parts of a value that a node makes, or one of them, or why that is not known."""


class Flow:
    """One pass over a trace, value by value."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.values: dict[fx.Node, Value] = {}
        self.pieces: dict[fx.Node, list[Value]] = {}
        self.classes: list[Units] = []
        self.sizes = Sizes(self.values)
        for node in trace.graph.nodes:
            self._visit(node)

    def sites(self) -> dict[Site | LeftOut, str]:
        """Return the sites of the classes that are left, and reasons for others.

        The text beside one is not empty where it holds only if values have the usual dimensions.
        """
        return sites_of(self.classes)

    def _visit(self, node: fx.Node) -> None:
        inputs = [n for n in node.all_input_nodes if n in self.values]
        module = self.trace.module(node)
        if node.op == "output" or node in self.trace.kept:
            self._end(inputs, "the network gives it")
        elif is_shape_query(node) or not (inputs or self._makes(node, module)):
            return
        elif any(n in self.pieces for n in inputs):
            self._of_pieces(node, inputs)
        elif isinstance(module, (nn.Linear, *CONVS, *TRANSPOSED)):
            self._layer(node, module, inputs)
        elif isinstance(module, NORMS):
            self._norm(node, module, inputs)
        elif node.target in _SUMS:
            self._sum(node, inputs)
        elif node.target in _PRODUCTS:
            self._product(node, inputs)
        elif node.target in _CONCATENATIONS:
            self._concatenation(node, inputs)
        elif node.target in _NORMALISE:
            self._functional_norm(node, inputs)
        elif node.target in PIECES:
            self._cut(node, inputs, pieces, "it is no split")
        elif node.target in (*NARROW, operator.getitem):
            self._cut(node, inputs, sliced, "it is an index")
        elif isinstance(module, nn.GLU) or node.target in GATES:
            self._glu(node, inputs)
        else:
            self._step(node, inputs)

    @staticmethod
    def _makes(node: fx.Node, module: nn.Module | None) -> bool:
        layers = (nn.Linear, *CONVS, *TRANSPOSED, *NORMS)
        return isinstance(module, layers) or node.target in _NORMALISE

    def _end(self, nodes: list[fx.Node], why: str, split: bool = False) -> None:
        for node in nodes:
            self.values[node].end(why, split)

    def _new(self, own: End, layout: str, linear: bool = False) -> Value:
        units = Units(own.total, [own], linear=linear)
        self.classes.append(units)
        return Value((Segment(units),), own.total, layout)

    def _layer(self, node: fx.Node, module: nn.Module, inputs: list[fx.Node]) -> None:
        name = str(node.target)
        why = obstacle(self.trace, module, name)
        value = first_input(node)
        dense = isinstance(module, nn.Linear)
        if inputs and (inputs != [value] or why):
            self._end(inputs, why or f"{name} does not take it as its input")
        elif inputs:
            own = self.values[inputs[0]]
            why_not = obstacle_to_use(module, name, own.width, own.layout)
            if why_not:
                self._end(inputs, why_not)
            else:
                view = partial(used_by, module, name, own.width)
                for part in own.parts:
                    part.units.linear &= dense and own.layout == "last"
                    part.units.read.append(
                        End(name, view, part.start, part.step, own.width, group_of(module))
                    )
        if not why:
            view, total = partial(made_by, module, name), outputs_of(module)
            made = End(name, view, total=total, group=group_of(module, made=True))
            self.values[node] = self._new(made, "last" if dense else "channels", dense)

    def _norm(self, node: fx.Node, module: nn.Module, inputs: list[fx.Node]) -> None:
        name = str(node.target)
        self._end(inputs, f"{name} undoes the scale of each channel")
        weight = module._parameters.get("weight")
        why = obstacle(self.trace, module, name)
        before = self.values[inputs[0]] if inputs else None
        if weight is not None and not why:
            self._gains(node, before, name, f"{name}.weight", f"{name}.bias", weight.numel())

    def _gains(
        self, node: fx.Node, before: Value | None, name: str, gain: str, shift: str, width: int
    ) -> None:
        layout = "channels" if before is None else before.layout
        if layout in ("channels", "last"):
            view = partial(gains_of, gain, shift, width)
            self.values[node] = self._new(End(name, view, total=width), layout)

    def _functional_norm(self, node: fx.Node, inputs: list[fx.Node]) -> None:
        """Read ``F.batch_norm`` with parameters of the model, as subclasses of a batch norm do."""
        self._end(inputs, "batch_norm undoes the scale of each channel")
        first = 1 if node.target is torch.batch_norm else 3
        gain, shift = (option(node, name, first + i) for i, name in enumerate(("weight", "bias")))
        before = self.values.get(first_input(node) or node)
        alone = all(
            isinstance(own, fx.Node) and own.op == "get_attr" and len(own.users) == 1
            for own in (gain, shift)
        )
        if not alone:
            return
        assert isinstance(gain, fx.Node)
        assert isinstance(shift, fx.Node)
        name = str(gain.target).rpartition(".")[0]
        if self.trace.calls[id(self.trace.model.get_submodule(name))] > 1:
            return
        width = self.trace.model.get_parameter(str(gain.target)).numel()
        self._gains(node, before, name, str(gain.target), str(shift.target), width)

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
        alike = first.layout == second.layout and first.width == second.width
        pairs = fitted(first, second) if alike and first.inner == second.inner else None
        if pairs is None:
            self._end(inputs, "a sum adds to it units of another layout")
            return
        for one, other in pairs:
            one.join(other)
        self.values[node] = first

    def _product(self, node: fx.Node, inputs: list[fx.Node]) -> None:
        """Read a product, as of a gate: a unit is scaled with each factor that has units."""
        factors = [self.values[n] for n in node.args[:2] if isinstance(n, fx.Node) and n in inputs]
        both = None
        if len(factors) == 2 and factors[0].layout == factors[1].layout in ("channels", "last"):
            same = factors[0].width == factors[1].width
            both = product(factors[0], factors[1]) if same else None
        value = factors[0] if len(factors) == 1 and not node.kwargs else both
        if value is None:
            self._end(inputs, f"{node.name} multiplies it with what has other units")
            return
        for own in value.classes:
            own.gated, own.linear = True, False
        value.label("a gate")
        self.values[node] = value

    def _concatenation(self, node: fx.Node, inputs: list[fx.Node]) -> None:
        """Read ``torch.cat`` along the units. A reader then uses each part by columns of its own.

        Rows may be of samples or of positions, of which the second dimension may be the last one.
        Where it is not, the reader does not have as many inputs as all parts together have units.
        """
        terms = option(node, "tensors", 0)
        dim = option(node, "dim", 1) or option(node, "axis", 1) or 0
        if isinstance(terms, fx.Node):
            values: list[Value | None] = [*self.pieces.get(terms, ())]
        else:
            values = [self.values.get(t) for t in terms] if isinstance(terms, list | tuple) else []
        parts = [value for value in values if value is not None]
        layouts = {value.layout for value in parts}
        count = dimensions_of(next(iter(inputs), None))
        dim -= count if count is not None and dim > 1 else 0
        if not parts or len(parts) < len(values):
            self._end(inputs, f"{node.name} joins it with what has no such units")
        elif layouts not in ({"channels"}, {"last"}) or dim not in (1, *[-1] * ("last" in layouts)):
            self._end(inputs, f"{node.name} does not surely join it along the units")
        else:
            self.values[node] = concatenated(parts)
            self.values[node].label("a concatenation")

    def _of_pieces(self, node: fx.Node, inputs: list[fx.Node]) -> None:
        """Read what takes the parts of a split: one of them by its number, or all to join them."""
        place = node.args[1] if node.target is operator.getitem else None
        found = self.pieces.get(inputs[0], [])
        if (
            node.target in _CONCATENATIONS
            and len(inputs) == 1
            and option(node, "tensors", 0) in (inputs)
        ):
            self._concatenation(node, inputs)
        elif isinstance(place, int) and -len(found) <= place < len(found):
            self.values[node] = found[place]
        else:
            self._end(inputs, f"{node.name} takes parts of a split together")

    def _cut(self, node: fx.Node, inputs: list[fx.Node], reads: Reads, other: str) -> None:
        """Read what takes all parts of a value, or one; ``other`` says what else it may be."""
        value = self.values[inputs[0]]
        found = reads(node, value, self.sizes) if first_input(node) in inputs else other
        if isinstance(found, str):
            self._end(inputs, found, split=True)
            return
        if isinstance(found, list):
            self.pieces[node], found = found, value
        self.values[node] = found
        found.label("a split")

    def _glu(self, node: fx.Node, inputs: list[fx.Node]) -> None:
        found = halves(self.trace, node, self.values[inputs[0]])
        if isinstance(found, str):
            self._end(inputs, found, split=True)
            return
        found[1].end("a sigmoid makes a gate of it")
        for own in found[0].classes:
            own.gated, own.linear = True, False
        found[0].label("a gate")
        self.values[node] = found[0]

    def _step(self, node: fx.Node, inputs: list[fx.Node]) -> None:
        own = self.values[inputs[0]]
        if len(inputs) == 1:
            moved = laid_out(self.trace, node, own, self.sizes)
            if moved is not None:
                self.values[node] = moved
                return
        if isinstance(self.trace.module(node), POOLS) and own.layout == "channels":
            self._pass(own, linear=False, signed=False)
            self.values[node] = own
            return
        step = read(self.trace, node, inputs[0])
        if isinstance(step, str) or len(inputs) > 1:
            self._end(inputs, step if isinstance(step, str) else f"{node.name} joins values")
            return
        layout = layout_after(step, own)
        if layout is None:
            self._end(inputs, f"{step.label} is not positively homogeneous, or moves the units")
            return
        if step.kind == "activation":
            own.label(step.label)
        self._pass(own, linear=step.kind == "same", signed=step.kind in _LINEAR)
        self.values[node] = replace(own, layout=layout)

    @staticmethod
    def _pass(value: Value, linear: bool, signed: bool) -> None:
        for own in value.classes:
            own.linear &= linear
            own.signed &= signed
