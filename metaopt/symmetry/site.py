"""Sites: the places of a network where a group can act, as matrices inside named parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from metaopt.errors import UserError
from metaopt.symmetry.activations import Activation

ALWAYS = "always"
"""The value of ``Site.exact`` for a group that keeps the function on all data."""


@dataclass(frozen=True)
class MatrixView:
    """A matrix inside a named parameter, such as one head of an attention weight.

    It says which dimensions of the parameter are the rows and which are the columns. Parameters may
    have leading batch dimensions, with one matrix for each index. These are not counted here.

    Attributes:
        parameter: the parameter's name.
        rows: dimensions of ``shape`` that become the rows, in order.
        columns: dimensions of ``shape`` that become the columns, in order. Without columns the view
            is of a vector, as one column.
        shape: the parameter's shape, with a dimension split up where only a part of it is a row or
            a column. None if the parameter is the matrix, or the vector, as it is.
        dims: how many dimensions the parameter itself has, if ``shape`` is given.
        at: pairs (dimension of ``shape``, index) that stay fixed, to see one head of several.
        heads: dimensions of ``shape`` that count matrices; they come before the rows.
        bias: the view of the bias that belongs to the rows, if there is one.
        narrow: a part (dimension of the parameter, start, length) that is cut out before ``shape``
            is read, where a parameter holds parts of several sizes.

    Example:
        >>> weights = {"w": torch.arange(24.0).reshape(4, 6)}
        >>> unit = MatrixView("w", rows=(0, 2), columns=(1,), shape=(4, 2, 3))  # blocks of 3
        >>> unit.read(weights).shape
        torch.Size([12, 2])
    """

    parameter: str
    rows: tuple[int, ...] = (0,)
    columns: tuple[int, ...] = (1,)
    shape: tuple[int, ...] | None = None
    dims: int = 2
    at: tuple[tuple[int, int], ...] = ()
    heads: tuple[int, ...] = ()
    bias: MatrixView | None = None
    narrow: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if self.shape is None and (
            self.rows != (0,)
            or self.columns not in ((1,), ())
            or self.at
            or self.heads
            or self.narrow
        ):
            raise UserError(
                f"expected the shape of {self.parameter} beside rows, columns, at or heads, got "
                f"none: give shape, and dims"
            )

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of all parameters that the view reads, the bias included."""
        return (self.parameter, *(self.bias.parameters if self.bias else ()))

    def read(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the matrix, ``(*batch, *heads, rows, columns)``, without its bias."""
        tensor = parameters[self.parameter]
        if self.shape is None:
            return tensor if self.columns else tensor.unsqueeze(-1)
        laid_out = self._laid_out(tensor)
        lead = laid_out.dim() - len(self.rows) - len(self.columns)
        split = lead + len(self.rows)
        shape = laid_out.shape
        return laid_out.reshape(*shape[:lead], _size(shape[lead:split]), _size(shape[split:]))

    def read_augmented(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the augmented weight [W b]; W alone where the view has no bias."""
        if self.bias is None:
            return self.read(parameters)
        return torch.cat((self.read(parameters), self.bias.read(parameters)), dim=-1)

    def write(self, parameters: dict[str, Tensor], value: Tensor) -> None:
        """Replace the matrix in ``parameters`` by a new tensor, differentiable in ``value``.

        Args:
            parameters: by name; only the entry of this view's parameter changes.
            value: of the shape that :meth:`read` gives.
        """
        if self.shape is None:
            parameters[self.parameter] = value if self.columns else value.squeeze(-1)
            return
        old = parameters[self.parameter]
        laid_out = self._laid_out(old)
        shaped = value.reshape(laid_out.shape)
        if self.at or self.narrow:
            new = old.clone(memory_format=torch.contiguous_format)
            self._laid_out(new).copy_(shaped)
            parameters[self.parameter] = new
            return
        batch = laid_out.dim() - len(self.shape)
        order = self._order()
        back = [order.index(dimension) for dimension in range(len(order))]
        restored = shaped.permute(*range(batch), *(batch + place for place in back))
        # Strides of another layout would reach the outputs, on which a forward may call view().
        parameters[self.parameter] = restored.reshape(old.shape).contiguous()

    def write_augmented(self, parameters: dict[str, Tensor], value: Tensor) -> None:
        """Replace the matrix and its bias in ``parameters`` by an augmented weight [W b].

        Args:
            parameters: by name; only the entries of this view change.
            value: of the shape that :meth:`read_augmented` gives.
        """
        if self.bias is None:
            self.write(parameters, value)
            return
        columns = value.shape[-1] - self.bias.read(parameters).shape[-1]
        self.write(parameters, value[..., :columns].contiguous())
        self.bias.write(parameters, value[..., columns:].contiguous())

    def _order(self) -> tuple[int, ...]:
        return (*self.heads, *self.rows, *self.columns)

    def _laid_out(self, tensor: Tensor) -> Tensor:
        """A view of the tensor, ``(*batch, *heads, *rows, *columns)``."""
        assert self.shape is not None
        lead = tensor.dim() - self.dims
        if self.narrow is not None:
            dimension, start, length = self.narrow
            tensor = tensor.narrow(lead + dimension, start, length)
        split = tensor.reshape(*tensor.shape[:lead], *self.shape)
        fixed = dict(self.at)
        index = [fixed.get(dimension, slice(None)) for dimension in range(len(self.shape))]
        chosen = split[(..., *index)] if fixed else split
        left = [dimension for dimension in range(len(self.shape)) if dimension not in fixed]
        order = [lead + left.index(dimension) for dimension in self._order()]
        return chosen.permute(*range(lead), *order)


def matrix_view(weight: str, bias: str | None = None) -> MatrixView:
    """Return the view of a weight ``(out, in)`` as it is, and of its bias ``(out,)``."""
    return MatrixView(weight, bias=None if bias is None else MatrixView(bias, columns=()))


def _size(shape: torch.Size) -> int:
    return math.prod(shape)


@dataclass(frozen=True)
class Site:
    """A place of a network where a group can act between the layers that make and use k features.

    Attributes:
        name: a name for people, such as "0 -> 2".
        incoming: views with k rows each, of the matrices that make the features. The group element
            multiplies them from the left.
        outgoing: views with k columns each, of the matrices that use the features. The inverse of
            the group element multiplies them from the right.
        between: the elementwise activation between the two; None if it is not one fixed function.
        group: the largest group that acts here: "GL" for invertible matrices, "positive" for
            positive scales of units, "nonzero" for scales of either sign, or a name of
            ``metaopt.symmetry.GROUPS``.
        width: the number k of features.
        exact: "always", or "on a batch of at most N samples".
        layers: the names of the module that makes the features and of the one that uses them.
        labels: names for people of what lies between, in order.
        fan_in: how many inputs one unit of the incoming layer has: features, or channels * kernel.
        plain: whether nothing but the activation lies between two matrices.
        homogeneous: whether positive scales of units pass through to what uses the features.
        scaled: the name of the batch norm that is scaled instead of the incoming layer, if any.
        block: how many inputs of the outgoing layer belong to one unit: H * W across a Flatten,
            else 1.
        kind: what the site is, for people, such as "values and outputs".
        planes: pairs of units that a rotation of positions turns into one another; the group
            "plane_rotations" scales and turns each pair.
    """

    name: str
    incoming: tuple[MatrixView, ...]
    outgoing: tuple[MatrixView, ...]
    between: Activation | None
    group: str
    width: int
    exact: str = ALWAYS
    layers: tuple[str, str] = ("", "")
    labels: tuple[str, ...] = ()
    fan_in: int = 0
    plain: bool = False
    homogeneous: bool = False
    scaled: str | None = None
    block: int = 1
    kind: str = ""
    planes: tuple[tuple[int, int], ...] = ()

    @property
    def heads(self) -> int:
        """How many group elements act here, one for each head."""
        view = self.incoming[0]
        return math.prod(view.shape[dimension] for dimension in view.heads) if view.shape else 1

    @property
    def directions(self) -> int:
        """The number of free directions: the dimension of the group, of all heads together."""
        k, rest = self.width, self.width - 2 * len(self.planes)
        sizes = {
            "GL": k * k,
            "orthogonal": k * (k - 1) // 2,
            "orthogonal_of_ones": (k - 1) * (k - 2) // 2,
            "plane_rotations": 2 * len(self.planes) + rest * rest,
        }
        return self.heads * sizes.get(self.group, k)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of all parameters that an action may move here, without repetition."""
        views = (*self.incoming, *self.outgoing)
        return tuple(dict.fromkeys(name for view in views for name in view.parameters))

    @property
    def biased(self) -> tuple[bool, bool]:
        """Whether what makes the features has a bias, and whether what uses them has one."""
        return self.incoming[0].bias is not None, self.outgoing[0].bias is not None

    @property
    def head_dims(self) -> int:
        """How many dimensions of an element count heads, which have one group element each."""
        return len(self.incoming[0].heads)

    def without_outgoing_bias(self) -> Site:
        """Return the site without its outgoing bias, for actions that do not move that bias."""
        return self._without_outgoing_bias

    @cached_property
    def _without_outgoing_bias(self) -> Site:
        return replace(self, outgoing=tuple(replace(view, bias=None) for view in self.outgoing))


class LeftOut(NamedTuple):
    """Layers between which no group acts, and the reason.

    Attributes:
        names: the incoming layer, then the layers that it leads to.
        reason: why, in plain words.
    """

    names: tuple[str, ...]
    reason: str


def named(names: Iterable[str], tensors: Iterable[Tensor]) -> dict[str, Tensor]:
    """Return tensors by name.

    Args:
        names: the names.
        tensors: as many tensors, in the same order.
    """
    return dict(zip(names, tensors, strict=True))
