"""What each parameter of a network is for: a matrix between layers, a vector, an embedding, ...

How long a step of a parameter may be depends on that. It is read from the modules that own the
parameters; where there are parameters alone, from their shapes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

HIDDEN, VECTOR, EMBEDDING, OUTPUT = "hidden", "vector", "embedding", "output"
KINDS = (HIDDEN, VECTOR, EMBEDDING, OUTPUT)
"""Kinds of parameters: matrices between layers, what has one entry a unit, tables of vectors, of
which a sample uses some rows, and the last matrix."""

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers whose weight is a matrix, with one row too."""

TRANSPOSED = ("Conv1D",)  # classes whose weight is (in, out), by name


class Role(NamedTuple):
    """What a parameter is for.

    Attributes:
        kind: one of ``KINDS``.
        rows: how many units it makes; 1 for what is no matrix.
        fan_in: how many inputs each of them has; 1 for what is no matrix.
        mixes: whether each unit sees several features, which a depthwise kernel does not.
        place: of the parameter among all of its optimizer.
        transposed: whether the inputs are the first dimension.
        deep: how many matrices between layers its optimizer has; 0 where that is not known.
    """

    kind: str
    rows: int = 1
    fan_in: int = 1
    mixes: bool = False
    transposed: bool = False
    place: int = 0
    deep: int = 0


def placed(roles: Iterable[Role]) -> list[Role]:
    """Return roles that know their places, and how deep the network is.

    Args:
        roles: of all parameters of an optimizer, in order.
    """
    known = list(roles)
    deep = depth_of(known)
    return [role._replace(place=place, deep=deep) for place, role in enumerate(known)]


def depth_of(roles: Iterable[Role]) -> int:
    """Return how many matrices between layers there are.

    Args:
        roles: of the parameters.
    """
    return sum(role.kind == HIDDEN for role in roles)


def role_of_shape(shape: Sequence[int]) -> Role:
    """Return what a parameter is taken for by its shape alone.

    Args:
        shape: of the parameter.
    """
    if len(shape) < 2 or shape[0] == 1 or math.prod(shape) == 0:
        return Role(VECTOR)
    return Role(HIDDEN, shape[0], math.prod(shape[1:]), shape[1] > 1)


def role_of(parameter: Tensor) -> Role:
    """Return what a parameter is taken for without its module.

    A complex matrix is one of twice as many inputs, as it is stepped: real and imaginary parts.

    Args:
        parameter: any parameter.
    """
    parts = (2,) if parameter.is_complex() and parameter.dim() > 1 else ()
    return role_of_shape((*parameter.shape, *parts))


def roles_of(model: nn.Module) -> dict[str, Role]:
    """Return what each parameter of a module is for, by its first name.

    The output is the last matrix in the module's order, unless it is an embedding.

    Args:
        model: any module.
    """
    owners = {
        id(parameter): module
        for module in model.modules()
        for parameter in module._parameters.values()
    }
    embeddings = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
    }
    roles: dict[str, Role] = {}
    last = None
    for name, parameter in model.named_parameters():
        role = _role(parameter, owners[id(parameter)], id(parameter) in embeddings)
        roles[name] = role
        if role.kind == HIDDEN:
            last = name
    if last is not None:
        roles[last] = roles[last]._replace(kind=OUTPUT)
    return roles


def _role(parameter: Tensor, owner: nn.Module, embedding: bool) -> Role:
    if embedding:
        return Role(EMBEDDING)
    role = role_of(parameter)
    if role.kind == VECTOR and isinstance(owner, LAYERS) and parameter is owner.weight:
        return Role(HIDDEN, 1, max(parameter[0].numel(), 1), parameter.shape[1] > 1)  # one output
    if parameter.dim() == 2 and role.kind == HIDDEN and type(owner).__name__ in TRANSPOSED:
        return Role(HIDDEN, parameter.shape[1], parameter.shape[0], True, True)
    return role
