"""What models are called with and what they give: tensors, inside tuples, mappings and the like.

A model is called with x as follows. A tuple or a list holds the positional arguments, and a mapping
the keyword arguments, so that a batch of the Hugging Face libraries can be given as it is. Anything
else is the one argument: a tensor, a ``PackedSequence``. A model whose one argument is itself a
list or a dictionary takes ``(x,)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

Inputs = Any
"""What a model is called with: a tensor, a tuple or list of arguments, or a mapping of them."""


def arguments_of(x: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and the keyword arguments that a model is called with.

    Args:
        x: a tensor, a tuple or list of arguments, or a mapping of them.
    """
    if isinstance(x, Mapping):
        return (), dict(x)
    return (tuple(x), {}) if type(x) in (tuple, list) else ((x,), {})


def as_inputs(inputs: tuple[Any, ...]) -> Inputs | None:
    """Return what a user gave as ``*inputs`` in the form that models are called with here.

    Args:
        inputs: the arguments; or one mapping of them, or one tuple.

    Returns:
        None if nothing was given.
    """
    return (inputs[0] if len(inputs) == 1 else inputs) if inputs else None


def tensors_in(value: Any) -> list[Tensor]:
    """Return all tensors in a nested value, in order.

    Args:
        value: a tensor, or tensors inside tuples, lists, mappings and data classes.
    """
    return list(_tensors(value))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for own in fields(value):
            yield from _tensors(getattr(value, own.name))


def mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return a nested value with a function applied to each of its tensors.

    Args:
        function: of a tensor.
        value: a tensor, or tensors inside tuples, lists and mappings; mappings become dictionaries.
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {name: mapped(function, item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        items = [mapped(function, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def samples_in(x: Inputs) -> int:
    """Return how many samples a batch has: the first size of its first tensor that has one.

    Args:
        x: what a model is called with; samples are in rows.
    """
    return next((len(tensor) for tensor in tensors_in(x) if tensor.dim()), 0)
