"""Which module, and which function, uses which module's output, seen by running a model once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from metaopt.symmetry.finders.sharing import has_memory
from metaopt.symmetry.functional import call_with, evaluating
from metaopt.symmetry.nested import Inputs, arguments_of, tensors_in

SUMS = ("add", "add_", "__add__", "__radd__", "__iadd__", "sub", "__sub__", "__rsub__")
"""What functions that add two values are called."""

GIVEN = "the network's output"
"""What a value is used by that the network gives."""

_COPIES = ("clone", "contiguous", "to", "type_as", "float", "double", "half", "bfloat16", "detach")
_AS = (
    "to",
    "type_as",
    "view_as",
    "reshape_as",
    "expand_as",
)  # the second value's form alone counts
_PICKS = ("__getitem__", "index_select", "narrow", "mean", "sum")
_SCALES = ("mul", "__mul__", "__rmul__", "div", "__truediv__")


@dataclass(frozen=True)
class Use:
    """A use of a module's output by another module.

    Attributes:
        name: the name of the module that uses it.
        position: which argument it is; the name of a keyword, or a number.
    """

    name: str
    position: int | str


@dataclass(frozen=True)
class Record:
    """What was seen of a run: the users of each module's output.

    A value counts as the same after a reshape, and where features are neither mixed nor changed,
    as in an average over positions. A function that runs in C++ as a whole is not seen. So what is
    concluded from a record has to be verified.

    Attributes:
        users: for each module, by name, the modules that use its output.
        others: for each module, by name, what else uses its output: names of functions, and
            :data:`GIVEN`.
        called: the names of all modules that ran.
    """

    users: Mapping[str, tuple[Use, ...]]
    others: Mapping[str, tuple[str, ...]]
    called: frozenset[str]


def record(model: nn.Module, x: Inputs) -> Record:
    """Run a model once in evaluation mode, and return who uses whose output.

    The model is not changed.

    Args:
        model: the module.
        x: what it is called with.
    """
    seen = _Seen({id(module): name for name, module in model.named_modules()})
    hooks = []
    try:
        for module in model.modules():
            hooks.append(module.register_forward_pre_hook(seen.before, with_kwargs=True))
            hooks.append(
                module.register_forward_hook(seen.after, with_kwargs=True, always_call=True)
            )
        with evaluating(model), torch.no_grad(), _Functions(seen):
            given = call_with(model, [], [], *arguments_of(x))
    finally:
        for hook in hooks:
            hook.remove()
    for value in tensors_in(given):
        seen.note(value, GIVEN)
    return Record(
        {maker: tuple(uses) for maker, uses in seen.users.items()},
        {maker: tuple(uses) for maker, uses in seen.others.items()},
        frozenset(seen.called),
    )


@dataclass
class _Seen:
    """What has been seen up to now.

    Attributes:
        names: of modules, by ``id``.
        makers: the module that made a value, by the place of the value.
        alive: values, so that no place is given away twice.
        inside: how many modules run whose functions are their own matter.
    """

    names: Mapping[int, str]
    makers: dict[int | None, str] = field(default_factory=dict)
    users: dict[str, dict[Use, None]] = field(default_factory=dict)
    others: dict[str, dict[str, None]] = field(default_factory=dict)
    called: dict[str, None] = field(default_factory=dict)
    alive: list[Any] = field(default_factory=list)
    inside: int = 0

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the values that a module takes."""
        name = self.names[id(module)]
        self.called[name] = None
        self.inside += _is_whole(module)
        places: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        for position, value in places:
            if isinstance(value, Tensor) and (maker := self.makers.get(_place(value))) is not None:
                self.users.setdefault(maker, {})[Use(name, position)] = None

    def after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Note the value that a module gives."""
        self.inside -= _is_whole(module)
        for value in tensors_in(output)[:1]:
            # What a module without weights gives as it came was made before, as by a dropout.
            makes = next(module.children(), None) is None and bool(module._parameters)
            if makes or _place(value) not in self.makers:
                self._made(value, self.names[id(module)])

    def function(self, name: str, given: Any, output: Any) -> None:
        """Note what a function takes that no layer calls."""
        results = tensors_in(output)
        if self.inside or not results:
            return
        values = tensors_in(given)
        if name.endswith("_like") or name.startswith("new_"):
            return
        for value in values[:1] if name in _AS else values:
            maker = self.makers.get(_place(value))
            if maker is None:
                continue
            if _place(results[0]) == _place(value) and not _changes(name):
                continue
            if len(results) == 1 and _passes(name, value, values, results[0]):
                self._made(results[0], maker)
            else:
                self.note(value, name)

    def _made(self, value: Tensor, maker: str) -> None:
        place = _place(value)
        if place is not None:
            self.alive.append(value)
            self.makers[place] = maker

    def note(self, value: Tensor, user: str) -> None:
        """Note a use of a value that is by no module."""
        maker = self.makers.get(_place(value))
        if maker is not None:
            self.others.setdefault(maker, {})[user] = None


class _Functions(TorchFunctionMode):
    """Tells of the functions of torch that run."""

    def __init__(self, seen: _Seen) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        self.seen.function(getattr(func, "__name__", ""), (args, kwargs or {}), output)
        return output


def _is_whole(module: nn.Module) -> bool:
    """Return whether a module counts as one user: a layer with weights, or attention of torch."""
    leaf = next(module.children(), None) is None and bool(module._parameters)
    return leaf or isinstance(module, nn.MultiheadAttention)


def _passes(name: str, value: Tensor, values: list[Tensor], result: Tensor) -> bool:
    """Return whether a function leaves each feature, the last dimension, to itself."""
    if not value.dim() or not result.dim() or result.shape[-1] != value.shape[-1]:
        return False
    if name in _SCALES:
        beside = [other for other in values if other is not value]
        return value is values[0] and all(not o.dim() or o.shape[-1] == 1 for o in beside)
    return name in _COPIES or name in _PICKS


def _changes(name: str) -> bool:
    """Return whether a function gives other values where its input lies."""
    return name in SUMS or name.startswith("__i") or (name[-1:] == "_" and name[-2:] != "__")


def _place(value: Tensor) -> int | None:
    """Where the values lie, which a reshape leaves; None for sparse ones and the like."""
    return int(value.untyped_storage()._cdata) if has_memory(value) else None
