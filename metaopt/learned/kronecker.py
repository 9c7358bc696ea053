"""The Kronecker-factored curvature of a chain of layers, decomposed (Martens and Grosse, 2015).

For a layer with augmented weight [W b], let C be the sum of a a^T over samples, where a is the
layer's input with a 1 for the bias, and S the mean Gauss-Newton matrix of the loss in the layer's
output. In the bases of their eigenvectors, S = U diag(s) U^T and C = V diag(c) V^T, the curvature
of the coefficient (i, j) of U^T [W b] V is about k_ij = s_i c_j.

S is the mean Hessian of the loss at the outputs, and below them S_l is
(W_{l+1}^T S_{l+1} W_{l+1}) * E[sigma' sigma'^T], entry by entry.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, final

import torch
from torch import Tensor
from torch.nn import functional

from metaopt.learned.without_graph import without_graph
from metaopt.output_loss import SQUARE, OutputLoss
from metaopt.symmetry.activations import with_derivative
from metaopt.symmetry.chain import Layer, LayerChain
from metaopt.symmetry.inputs import Eigen, LayerInput, eigen

TINY = 1e-300  # of a product of curvatures in float64


class LayerCurvature(ABC):
    """The curvature of a layer in a basis where it is diagonal; float64 and without a graph."""

    @property
    @abstractmethod
    def curvature(self) -> Tensor:
        """The curvatures k, ``(*batch, out, in + 1)``."""

    @abstractmethod
    def into(self, matrix: Tensor) -> Tensor:
        """Return the coefficients of a matrix in the basis.

        Args:
            matrix: ``(*batch, out, in + 1)``, with further dimensions before if need be.
        """

    @abstractmethod
    def back(self, coefficients: Tensor) -> Tensor:
        """Return the matrix of coefficients; the inverse of :meth:`into`.

        Args:
            coefficients: of the shape of the matrix.
        """


@final
@dataclass(frozen=True)
class Diagonal(LayerCurvature):
    """The curvature of parameters that are taken one by one.

    Attributes:
        values: the curvatures, ``(1, parameters)``.
    """

    values: Tensor

    @property
    def curvature(self) -> Tensor:
        """The curvatures."""
        return self.values

    def into(self, matrix: Tensor) -> Tensor:
        """Return the matrix, which is in the basis already."""
        return matrix

    def back(self, coefficients: Tensor) -> Tensor:
        """Return the coefficients, which are the matrix."""
        return coefficients


@final
@dataclass(frozen=True)
class Factors(LayerCurvature):
    """The Kronecker-factored curvature of a layer, decomposed.

    Attributes:
        of_output: S = U diag(s) U^T, ``(*batch, out, out)``.
        of_input: C = V diag(c) V^T, ``(*batch, in + 1, in + 1)``, or ``in`` without a bias.
        plain: whether U is I.
    """

    of_output: Eigen
    of_input: Eigen
    plain: bool = False

    @property
    def left(self) -> Tensor:
        """U, ``(*batch, out, out)``."""
        return self.of_output.vectors

    @property
    def right(self) -> Tensor:
        """V, ``(*batch, in + 1, in + 1)``, or ``in`` without a bias."""
        return self.of_input.vectors

    @property
    def curvature(self) -> Tensor:
        """The curvatures k, ``(*batch, out, in + 1)``."""
        return self.of_output.values.unsqueeze(-1) * self.of_input.values.unsqueeze(-2)

    @property
    def largest(self) -> Tensor:
        """The largest curvature, ``(*batch, 1, 1)``."""
        return (self.of_output.values[..., -1:] * self.of_input.values[..., -1:]).unsqueeze(-1)

    def into(self, matrix: Tensor) -> Tensor:
        """Return the coefficients U^T M V of a matrix M."""
        return (matrix if self.plain else self.left.mT @ matrix) @ self.right

    def back(self, coefficients: Tensor) -> Tensor:
        """Return the matrix of coefficients."""
        return (coefficients if self.plain else self.left @ coefficients) @ self.right.mT


class Pass(NamedTuple):
    """A forward pass of a chain; all without a graph.

    Attributes:
        inputs: of each layer, with a 1 for the bias, ``(*batch, in + 1, samples)``.
        slopes: derivatives of the activation that follows each layer; None where it is the
            identity.
        outputs: of the network.
    """

    inputs: Sequence[Tensor]
    slopes: Sequence[Tensor | None]
    outputs: Tensor


class Curvature(NamedTuple):
    """The Gauss-Newton curvature at a point; all without a graph.

    Attributes:
        factors: of each layer, decomposed.
        inputs: of each layer, with a 1 for the bias, ``(*batch, in + 1, samples)``.
        slopes: derivatives of the activation that follows each layer; None where it is the
            identity.
        outputs: of the network.
    """

    factors: Sequence[Factors]
    inputs: Sequence[Tensor]
    slopes: Sequence[Tensor | None]
    outputs: Tensor


@without_graph
def passed(chain: LayerChain, layers: Sequence[Layer], x: LayerInput) -> Pass:
    """Return the forward pass of a chain.

    Args:
        chain: the layers.
        layers: their weights, in float64.
        x: the input of the chain.
    """
    first = x.with_ones if chain.biased[0] else x
    inputs, slopes, h = [first.h], [], x.h
    for place, (layer, activation) in enumerate(zip(layers, chain.activations, strict=True)):
        if place:
            biased = layer.bias is not None
            inputs.append(functional.pad(h, (0, 0, 0, 1), value=1.0) if biased else h)
        h, slope = with_derivative(activation, layer(h))
        slopes.append(slope)
    return Pass(inputs, slopes, h)


def curvature(
    chain: LayerChain, layers: Sequence[Layer], x: Tensor, loss: OutputLoss = SQUARE
) -> Curvature:
    """Return the Gauss-Newton curvature of a chain at some weights.

    Args:
        chain: the layers.
        layers: their weights, in float64.
        x: the input, ``(*batch, d_0, samples)``, in float64.
        loss: of the outputs.
    """
    given = LayerInput(x)
    at = passed(chain, layers, given)
    return Curvature(factored(layers, at, moments(chain, at, given), loss), *at)


def moments(chain: LayerChain, at: Pass, x: LayerInput) -> list[Eigen]:
    """Return C of each layer, decomposed; that of the chain's input is kept with it.

    Args:
        chain: the layers.
        at: a forward pass.
        x: the input of the chain.
    """
    first = x.with_ones if chain.biased[0] else x
    return [first.moment, *decomposed([a @ a.mT for a in at.inputs[1:]])]


def factored(
    layers: Sequence[Layer], at: Pass, of_inputs: Sequence[Eigen], loss: OutputLoss = SQUARE
) -> list[Factors]:
    """Return the curvature of each layer, decomposed.

    Args:
        layers: the weights.
        at: the forward pass there.
        of_inputs: C of each layer, decomposed.
        loss: of the outputs.
    """
    whole = at.slopes[-1] is None and loss.mean is SQUARE.mean  # S of the last layer is I
    s = at.outputs if whole else loss.mean(at.outputs)
    found: list[Tensor] = []
    for layer, slope in zip(layers[::-1], at.slopes[::-1], strict=True):
        if slope is not None:
            s = s * (slope @ slope.mT / slope.shape[-1])
        found.append(s)
        if len(found) < len(layers):
            weight = layer.weight.detach()
            s = weight.mT @ (weight if whole and len(found) == 1 else s @ weight)
    found.reverse()
    if whole:
        last = _of_identity(at.outputs.shape[-2], at.outputs.device)
        batch = at.outputs.shape[:-2]
        if batch:
            last = Eigen(*(own.expand(*batch, *own.shape) for own in last))
        below = map(Factors, decomposed(found[:-1]), of_inputs)
        return [*below, Factors(last, of_inputs[-1], plain=True)]
    return list(map(Factors, decomposed(found), of_inputs))


def decomposed(matrices: Sequence[Tensor]) -> list[Eigen]:
    """Return symmetric matrices decomposed, those of one size together.

    Args:
        matrices: ``(*batch, n, n)`` each.
    """
    places: dict[torch.Size, list[int]] = {}
    for place, matrix in enumerate(matrices):
        places.setdefault(matrix.shape, []).append(place)
    found: dict[int, Eigen] = {}
    for own in places.values():
        if len(own) == 1:
            found[own[0]] = eigen(matrices[own[0]])
            continue
        joint = eigen(torch.stack([matrices[place] for place in own]))
        found |= zip(own, map(Eigen, *joint), strict=True)
    return [found[place] for place in range(len(matrices))]


@lru_cache
@torch.inference_mode(False)  # what is kept must serve callers outside it too
def _of_identity(size: int, device: torch.device) -> Eigen:
    identity = torch.eye(size, dtype=torch.float64, device=device)
    return Eigen(identity.diagonal().clone(), identity.mT)  # in columns, as from eigh


def spread(of_tasks: Tensor, batch: torch.Size, like: Tensor) -> Tensor:
    """Return a number for each task with dimensions of 1, so that it broadcasts.

    Args:
        of_tasks: ``(tasks,)``.
        batch: the dimensions of tasks.
        like: ``(*batch, ...)``, with what it is to broadcast.
    """
    return of_tasks.reshape(*batch, *[1] * (like.dim() - len(batch)))


def split(augmented: Tensor, layer: Layer) -> Layer:
    """Return an augmented weight as weight and bias.

    Args:
        augmented: ``(*batch, out, in + 1)``.
        layer: of these shapes.
    """
    if layer.bias is None:
        return Layer(augmented)
    return Layer(augmented[..., :-1], augmented[..., -1])


def norm(matrix: Tensor) -> Tensor:
    """Return the Frobenius norm of matrices, without a graph."""
    size: Tensor = torch.linalg.vector_norm(matrix.detach(), dim=(-2, -1))
    return size


def with_penalties(
    factors: Sequence[LayerCurvature], penalties: Sequence[Tensor] | None
) -> list[Tensor]:
    """Return the curvatures of coefficients with those of penalties, which are about their mean.

    Args:
        factors: of each layer.
        penalties: their curvature at each entry; None without any.
    """
    if penalties is None:
        return [own.curvature for own in factors]
    return [
        own.curvature
        + (beside if isinstance(own, Diagonal) else beside.mean(dim=(-2, -1), keepdim=True))
        for own, beside in zip(factors, penalties, strict=True)
    ]
