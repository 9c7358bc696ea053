"""Calls that split values along their units, gate them, or lay channels out anew.

A split that is not surely along the units has a reason instead. Where the trace does not tell how
many dimensions a value has, a split along dimension 1, 2 or 3 of rows may be one of positions. It
is read as one of units, and marked as unsure.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from metaopt.symmetry.finders.trace import (
    Trace,
    batch_size_of,
    first_input,
    is_shape_query,
)
from metaopt.symmetry.finders.unit_values import Value

CHUNKS = (torch.chunk, "chunk")
SPLITS = (torch.split, "split", torch.functional.split)
PIECES = (*CHUNKS, *SPLITS, torch.unbind, "unbind")
GATES = (F.glu,)
NARROW = (torch.narrow, "narrow")
SHUFFLES = (F.channel_shuffle, torch.channel_shuffle)
_VIEWS = ("view", "reshape", torch.reshape)
_TRANSPOSES = ("transpose", torch.transpose, torch.swapaxes, "swapaxes")
_COMPUTED: dict[object, Callable[[int, int], int]] = {
    operator.floordiv: operator.floordiv, operator.mul: operator.mul,
    operator.add: operator.add, operator.sub: operator.sub,
}  # fmt: skip


def option(node: fx.Node, name: str, place: int) -> Any:
    """Return an argument of a call by its name or its place; None if it is not given.

    Args:
        node: the call.
        name: of the argument.
        place: of the argument.
    """
    return node.kwargs.get(name, node.args[place] if len(node.args) > place else None)


@dataclass(frozen=True)
class Sizes:
    """What is known of the whole numbers that a forward computes from the sizes of values.

    Attributes:
        values: the values that have units.
    """

    values: Mapping[fx.Node, Value]

    def number(self, argument: object) -> int | None:
        """Return a number that is the same in every run, or None.

        Args:
            argument: a number, or a node that computes it.
        """
        if isinstance(argument, int) and not isinstance(argument, bool):
            return argument
        if not isinstance(argument, fx.Node):
            return None
        sized = _sized(argument)
        if sized is not None and sized[0] in self.values:
            own, dim = self.values[sized[0]], sized[1]
            units = {"channels": (1,), "last": (-1,)}.get(own.layout, ())
            return own.width if dim in units else None
        compute = _COMPUTED.get(argument.target)
        if compute is None or len(argument.args) != 2:
            return None
        one, other = map(self.number, argument.args)
        if one is None or other is None or (compute is operator.floordiv and not other):
            return None
        return compute(one, other)

    def keeps_samples(self, node: fx.Node, count: object) -> bool:
        """Return whether a count is surely that of the samples of a value.

        Args:
            node: the value, which has units.
            count: a number, or a node that computes it.
        """
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.dim():
            return bool(value.shape[0] == count)
        return batch_size_of(count) in self.values


def _sized(node: fx.Node) -> tuple[fx.Node, object] | None:
    """Return the value and the dimension whose size a node is; None if it is none."""
    if node.op == "call_method" and node.target == "size" and len(node.args) == 2:
        value = first_input(node)
        return None if value is None else (value, node.args[1])
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        shape = node.args[0]
        value = first_input(shape)
        if is_shape_query(shape) and value is not None and len(node.args) == 2:
            return value, node.args[1]
    return None


def dimensions_of(node: fx.Node | None) -> int | None:
    """Return how many dimensions a value has, where the trace tells."""
    value = None if node is None else node.meta.get("val")
    return value.dim() if isinstance(value, Tensor) else None


def along(node: fx.Node, value: Value, dim: object) -> str:
    """Return "" if a dimension is that of the units, "unsure" if it may be, and else a reason.

    Args:
        node: the call.
        value: what it is called with.
        dim: the dimension.
    """
    count = dimensions_of(first_input(node))
    if isinstance(dim, int) and count is not None and dim >= 0:
        dim -= count
    channels = -1 if count is None else 1 - count
    if value.layout == "channels" and (dim == (1 if count is None else channels)):
        return ""
    if value.layout == "last":
        if dim == -1:
            return ""
        if count is None and dim in (1, 2, 3):
            return "unsure"
    return f"{_called(node)} does not surely split it along the units"


def pieces(node: fx.Node, value: Value, sizes: Sizes) -> list[Value] | str:
    """Return the parts that ``chunk`` and ``split`` give, or why they are not known.

    Args:
        node: the call.
        value: what is split.
        sizes: tells the numbers among the arguments.
    """
    if node.target in (torch.unbind, "unbind"):
        return f"{_called(node)} takes it apart into single features or positions"
    dim = option(node, "dim", 2)
    why = along(node, value, 0 if dim is None else dim)
    if why not in ("", "unsure"):
        return why
    name = "chunks" if node.target in CHUNKS else "split_size_or_sections"
    given = option(node, name, 1)
    given = node.kwargs.get("split_size", given)
    if isinstance(given, list | tuple):
        lengths = [sizes.number(size) or 0 for size in given]
    else:
        each = sizes.number(given) or 0
        if node.target in CHUNKS and each > 0:
            each = -(-value.width // each)
        starts = range(0, value.width, each) if each > 0 else ()
        lengths = [min(each, value.width - start) for start in starts]
    if not lengths or any(length < 1 for length in lengths):
        return f"{_called(node)} splits it into parts of sizes that are not known"
    if sum(lengths) != value.width:
        return f"{_called(node)} splits {sum(lengths)} features, but it has {value.width} units"
    _doubt(value, why)
    ends = list(accumulate(lengths))
    return [value.part(end - own, end) for end, own in zip(ends, lengths, strict=True)]


def sliced(node: fx.Node, value: Value, sizes: Sizes) -> Value | str:
    """Return the part that ``x[..., a:b]`` or ``narrow`` gives, or why it is not known.

    Args:
        node: the call.
        value: what is sliced.
        sizes: tells the numbers among the arguments.
    """
    if node.target in NARROW:
        dim, first, length = (
            option(node, name, place + 1) for place, name in enumerate(("dim", "start", "length"))
        )
        start, size = sizes.number(first), sizes.number(length)
        end = None if start is None or size is None else start + size
    else:
        if all(item in (Ellipsis, slice(None)) for item in _items(node.args[1])):
            return value
        found = _slice(_items(node.args[1]))
        if found is None:
            return f"{_called(node)} takes other parts of it than a range of features"
        dim, own = found
        start, end = (_place(given, value.width, sizes) for given in (own.start or 0, own.stop))
        if own.step not in (None, 1):
            return f"{_called(node)} takes features at steps"
    why = along(node, value, dim)
    if why not in ("", "unsure"):
        return why
    if start is None or end is None or not 0 <= start < end <= value.width:
        return f"{_called(node)} takes a range of features that is not known"
    _doubt(value, why)
    return value.part(start, end)


def _items(index: object) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _slice(items: tuple[Any, ...]) -> tuple[int, slice] | None:
    """Return the one dimension that an index cuts, and how; None if there is not exactly one."""
    if any(not isinstance(item, slice) and item is not Ellipsis for item in items):
        return None
    cut = [place for place, item in enumerate(items) if item not in (Ellipsis, slice(None))]
    if len(cut) != 1:
        return None
    (place,) = cut
    return (place - len(items) if Ellipsis in items[:place] else place), items[place]


def _place(given: object, width: int, sizes: Sizes) -> int | None:
    """Return a bound of a slice as a place between 0 and the number of units."""
    place = width if given is None else sizes.number(given)
    if place is None:
        return None
    return min(place, width) if place >= 0 else max(0, place + width)


def halves(trace: Trace, node: fx.Node, value: Value) -> tuple[Value, Value] | str:
    """Return the values and the gates of ``glu``, or why it is not known which they are.

    Args:
        trace: the data flow.
        node: the call of the function or of the module.
        value: what it is called with.
    """
    module = trace.module(node)
    dim = module.dim if isinstance(module, nn.GLU) else option(node, "dim", 1)
    why = along(node, value, -1 if dim is None else dim)
    if why not in ("", "unsure"):
        return why
    _doubt(value, why)
    middle = value.width // 2
    return value.part(0, middle), value.part(middle, value.width)


def laid_out(trace: Trace, node: fx.Node, value: Value, sizes: Sizes) -> Value | None:
    """Return channels after a shuffle, or a step of one written by hand; None for other calls.

    By hand it is ``view(n, groups, c // groups, h, w)``, ``transpose(1, 2)`` and a view back.

    Args:
        trace: the data flow.
        node: the call.
        value: what it is called with.
        sizes: tells the numbers among the arguments.
    """
    module = trace.module(node)
    if isinstance(module, nn.ChannelShuffle) or node.target in SHUFFLES:
        given = option(node, "groups", 1) if module is None else module.groups
        groups = sizes.number(given)
        return None if groups is None else _shuffled(value, groups)
    if node.target in _TRANSPOSES and value.layout == "pairs":
        dims = {option(node, "dim0", 1), option(node, "dim1", 2)}
        return value.turned() if dims == {1, 2} else None
    before = first_input(node)
    if node.target not in _VIEWS or before is None:
        return None
    shape = node.args[1:]
    if len(shape) == 1 and isinstance(shape[0], list | tuple):
        shape = tuple(shape[0])
    found = None
    if value.layout == "channels" and len(shape) > 3:
        outer, inner = sizes.number(shape[1]), sizes.number(shape[2])
        if outer is not None and inner is not None and outer * inner == value.width and inner > 0:
            found = replace(value, layout="pairs", inner=inner)
    if value.layout == "pairs" and len(shape) > 2 and sizes.number(shape[1]) in (value.width, -1):
        found = replace(value, layout="channels", inner=1)
    if found is not None and not sizes.keeps_samples(before, shape[0]):
        _doubt(found, "unsure")
    return found


def _shuffled(value: Value, groups: int) -> Value | None:
    if value.layout != "channels" or groups < 1 or value.width % groups:
        return None
    turned = replace(value, layout="pairs", inner=value.width // groups).turned()
    return replace(turned, layout="channels", inner=1)


def _doubt(value: Value, why: str) -> None:
    for own in value.classes if why else ():
        own.unsure = True


def _called(node: fx.Node) -> str:
    target = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    return {"getitem": "an index"}.get(name, name)
