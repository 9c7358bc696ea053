"""Which module uses which module's output, seen by running a model once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metaopt.symmetry.functional import call_with, evaluating
from metaopt.symmetry.nested import Inputs, arguments_of, tensors_in


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
    """What was seen of a run: the users of each module's output, as far as they are modules.

    A value that is reshaped on its way counts as the same. What else is done with a value is not
    seen. So what is concluded from a record has to be verified.

    Attributes:
        users: for each module, by name, the modules that use its output.
        called: the names of all modules that ran.
    """

    users: Mapping[str, tuple[Use, ...]]
    called: frozenset[str]


def record(model: nn.Module, x: Inputs) -> Record:
    """Run a model once in evaluation mode, and return who uses whose output.

    The model is not changed.

    Args:
        model: the module.
        x: what it is called with.
    """
    makers: dict[int, str] = {}
    users: dict[str, dict[Use, None]] = {}
    called: dict[str, None] = {}
    alive: list[Any] = []  # so that no address is given away twice
    names = {id(module): name for name, module in model.named_modules()}

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name = names[id(module)]
        called[name] = None
        places: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        for position, value in places:
            if isinstance(value, Tensor) and (maker := makers.get(_place(value))) is not None:
                users.setdefault(maker, {})[Use(name, position)] = None

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        for value in tensors_in(output)[:1]:
            alive.append(value)
            # What a module without weights gives as it came was made before, as by a dropout.
            makes = next(module.children(), None) is None and bool(module._parameters)
            if makes or _place(value) not in makers:
                makers[_place(value)] = names[id(module)]

    hooks = []
    try:
        for module in model.modules():
            hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
            hooks.append(module.register_forward_hook(after, with_kwargs=True))
        with evaluating(model), torch.no_grad():
            call_with(model, [], [], *arguments_of(x))
    finally:
        for hook in hooks:
            hook.remove()
    return Record({maker: tuple(uses) for maker, uses in users.items()}, frozenset(called))


def _place(value: Tensor) -> int:
    """Where the values lie, which a reshape leaves."""
    return int(value.untyped_storage()._cdata)
