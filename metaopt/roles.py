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
"""Layers whose weight is a matrix, with one row or one column too."""

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
RECURRENT = (nn.RNNBase, nn.RNNCellBase)  # whose matrices are never the output

TRANSPOSED = ("Conv1D",)  # classes whose weight is (in, out), by name


class Role(NamedTuple):
    """What a parameter is for.

    Attributes:
        kind: one of ``KINDS``.
        rows: how many units it makes; 1 for what is no matrix.
        fan_in: how many inputs each of them has; 1 for what is no matrix.
        mixes: whether each unit sees several features, which a depthwise kernel does not.
        place: of the parameter in its group.
        transposed: whether the inputs are the first dimension.
        deep: how many trainable matrices between layers its optimizer has; 0 where that is not
            known.
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
        roles: of all parameters of a group, in order.
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

    The output is the last matrix in the module's order that is neither an embedding nor part of a
    recurrent layer. There is none where a layer has the weight of an embedding, which is the
    output then. Where a weight of an embedding is used again without a layer, that is not seen.

    Args:
        model: any module.
    """
    owners = {
        id(parameter): module
        for module in model.modules()
        for parameter in module._parameters.values()
    }
    of_embeddings, of_layers = (
        {id(module.weight) for module in model.modules() if isinstance(module, kinds)}
        for kinds in (EMBEDDINGS, LAYERS)
    )
    roles: dict[str, Role] = {}
    last = None
    for name, parameter in model.named_parameters():
        owner = owners[id(parameter)]
        role = _role(parameter, owner, id(parameter) in of_embeddings)
        roles[name] = role
        if role.kind == HIDDEN and not isinstance(owner, RECURRENT):
            last = name
    if last is not None and not of_embeddings & of_layers:
        roles[last] = roles[last]._replace(kind=OUTPUT)
    return roles


def _role(parameter: Tensor, owner: nn.Module, embedding: bool) -> Role:
    if embedding:
        return Role(EMBEDDING)
    role = role_of(parameter)
    shape = parameter.shape
    if isinstance(owner, LAYERS) and parameter is owner.weight:
        if role.kind == VECTOR and shape[0] == 1:
            return Role(HIDDEN, 1, max(math.prod(shape[1:]), 1), shape[1] > 1)  # one output
    elif role.kind == HIDDEN and math.prod(shape[1:]) == 1:
        return Role(VECTOR)  # one entry a unit, as of scales and of the norms of weight_norm
    if parameter.dim() == 2 and role.kind == HIDDEN and type(owner).__name__ in TRANSPOSED:
        return Role(HIDDEN, parameter.shape[1], parameter.shape[0], True, True)
    return role
