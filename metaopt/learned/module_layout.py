"""The parameters of any module as augmented weights [W b] of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from metaopt.symmetry.chain import Layer, LayerPair, Layout

WIDEST = 1024  # units or inputs of a layer whose curvature is decomposed
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Matrix(NamedTuple):
    """A layer whose weight is a matrix.

    Attributes:
        module: the name of the layer.
        weight: the place of its weight among the parameters.
        bias: that of its bias; None where it has none among them.
    """

    module: str
    weight: int
    bias: int | None = None

    @property
    def places(self) -> tuple[int, ...]:
        """The places of its parameters."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)


@final
@dataclass(frozen=True)
class ModuleLayout(Layout):
    """The parameters of a module: matrices of Linear layers and convolutions, and all others.

    The others, such as gains of norms, embeddings and what is wider than 1,024, are one row.

    Attributes:
        names: of the parameters, in order.
        shapes: of the parameters.
        matrices: the layers whose weights are matrices.
        batch_dims: none.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    matrices: tuple[Matrix, ...]
    batch_dims: int = 0

    @property
    def pairs(self) -> tuple[LayerPair, ...]:
        """The pairs of layers between which a group acts through features; none."""
        return ()

    @cached_property
    def others(self) -> tuple[int, ...]:
        """The places of the parameters that belong to no matrix."""
        owned = {place for matrix in self.matrices for place in matrix.places}
        return tuple(place for place in range(len(self.names)) if place not in owned)

    def layers(self, parameters: Sequence[Tensor]) -> list[Layer]:
        """Return the matrices in order, and then the others as one row, as layers.

        Args:
            parameters: in order, with any leading dimensions.
        """
        lead = parameters[0].shape[: parameters[0].dim() - len(self.shapes[0])]
        found = [
            Layer(
                parameters[own.weight].reshape(*lead, *_matrix(self.shapes[own.weight])),
                None if own.bias is None else parameters[own.bias],
            )
            for own in self.matrices
        ]
        if self.others:
            row = torch.cat(
                [
                    parameters[place].reshape(*lead, self.shapes[place].numel())
                    for place in self.others
                ],
                dim=-1,
            )
            found.append(Layer(row.unsqueeze(-2)))
        return found

    def parts(self, place: int, augmented: Tensor) -> dict[int, Tensor]:
        """Return the parts of the parameters of a layer of an augmented weight.

        Args:
            place: of the layer.
            augmented: ``(rows, out, in + 1)``.

        Returns:
            The parts by place of the parameter, ``(rows, *shape)`` each.
        """
        if place == len(self.matrices):
            sizes = [self.shapes[own].numel() for own in self.others]
            row = augmented.squeeze(-2)
            found = dict(zip(self.others, row.split_with_sizes(sizes, dim=-1), strict=True))
        else:
            own = self.matrices[place]
            found = {own.weight: augmented if own.bias is None else augmented[..., :-1]}
            if own.bias is not None:
                found[own.bias] = augmented[..., -1]
        return {own: part.reshape((-1, *self.shapes[own])) for own, part in found.items()}

    def parameters(self, layers: Sequence[Layer]) -> list[Tensor]:
        """Return layers as parameters; the inverse of :meth:`layers`."""
        lead = layers[0].weight.shape[:-2]
        found: dict[int, Tensor] = {}
        for own, layer in zip(self.matrices, layers, strict=False):
            found[own.weight] = layer.weight
            if own.bias is not None and layer.bias is not None:
                found[own.bias] = layer.bias
        if self.others:
            sizes = [self.shapes[place].numel() for place in self.others]
            row = layers[-1].weight.squeeze(-2)
            found |= zip(self.others, row.split_with_sizes(sizes, dim=-1), strict=True)
        return [found[place].reshape((*lead, *shape)) for place, shape in enumerate(self.shapes)]

    def coefficients(self, parameters: Sequence[Tensor]) -> list[int]:
        """See :meth:`Layout.coefficients`; those of the row belong to its first parameter."""
        found = [0] * len(self.names)
        for own in self.matrices:
            found[own.weight] = sum(self.shapes[place].numel() for place in own.places)
        if self.others:
            found[self.others[0]] = sum(self.shapes[place].numel() for place in self.others)
        return found


def _matrix(shape: torch.Size) -> tuple[int, int]:
    """The shape of a weight as a matrix."""
    return shape[0], shape[1:].numel()


def layout_of(model: nn.Module, names: Sequence[str]) -> ModuleLayout:
    """Return how some parameters of a module are layers.

    Args:
        model: any module.
        names: of the parameters.
    """
    parameters = [model.get_parameter(name) for name in names]
    places = {id(parameter): place for place, parameter in enumerate(parameters)}
    owners = _owners(model)
    matrices = []
    for name, module in model.named_modules():
        if not _is_matrix(module) or owners.get(id(module.weight), 0) != 1:
            continue
        weight, bias = places.get(id(module.weight)), places.get(id(module.bias))
        if weight is not None and not (bias is not None and owners[id(module.bias)] != 1):
            matrices.append(Matrix(name, weight, bias))
    return ModuleLayout(
        tuple(names), tuple(parameter.shape for parameter in parameters), tuple(matrices)
    )


def _owners(model: nn.Module) -> Mapping[int, int]:
    """How many modules have each parameter, by id."""
    found: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            found[id(parameter)] = found.get(id(parameter), 0) + 1
    return found


def _is_matrix(module: nn.Module) -> bool:
    """Whether the weight of a module is a matrix that its inputs are multiplied with."""
    if "weight" not in module._parameters or module._parameters["weight"] is None:
        return False
    if type(module) is not nn.Linear and type(module) not in CONVOLUTIONS:
        return False
    if getattr(module, "groups", 1) != 1 or getattr(module, "padding_mode", "zeros") != "zeros":
        return False
    weight = module._parameters["weight"]
    return max(len(weight), weight[0].numel()) <= WIDEST
