"""The Kronecker-factored curvature of a chain of layers, decomposed (Martens and Grosse, 2015).

For a layer with augmented weight [W b], let C be the sum of a a^T over samples, where a is the
layer's input with a 1 for the bias, and S the mean Gauss-Newton matrix of the loss in the layer's
output. In the bases of their eigenvectors, S = U diag(s) U^T and C = V diag(c) V^T, the curvature
of the coefficient (i, j) of U^T [W b] V is about k_ij = s_i c_j.

S is the mean Hessian of the loss at the outputs, and below them S_l is
(W_{l+1}^T S_{l+1} W_{l+1}) * E[sigma' sigma'^T], entry by entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metaopt.output_loss import SQUARE, OutputLoss
from metaopt.symmetry.activations import derivative
from metaopt.symmetry.chain import Layer, LayerChain

TINY = 1e-300  # of a product of curvatures in float64


class Factors(NamedTuple):
    """The curvature of a layer, decomposed; tensors are float64 and without a graph.

    Attributes:
        left: U, ``(*batch, out, out)``.
        right: V, ``(*batch, in + 1, in + 1)``, or ``in`` without a bias.
        curvature: k, ``(*batch, out, in + 1)``.
    """

    left: Tensor
    right: Tensor
    curvature: Tensor

    @classmethod
    def of(cls, s: Tensor, c: Tensor) -> Factors:
        """Return the decomposition of a layer.

        Args:
            s: S, ``(*batch, out, out)``.
            c: C, ``(*batch, in + 1, in + 1)``, or ``in`` without a bias.
        """
        (left, u), (right, v) = _decomposed(s), _decomposed(c)
        return cls(u, v, left.unsqueeze(-1) * right.unsqueeze(-2))

    @property
    def largest(self) -> Tensor:
        """The largest curvature, ``(*batch, 1, 1)``."""
        return self.curvature.amax(dim=(-2, -1), keepdim=True)

    def into(self, matrix: Tensor) -> Tensor:
        """Return the coefficients U^T M V of a matrix."""
        return self.left.mT @ matrix @ self.right

    def back(self, coefficients: Tensor) -> Tensor:
        """Return the matrix of coefficients."""
        return self.left @ coefficients @ self.right.mT


class Curvature(NamedTuple):
    """The Gauss-Newton curvature at a point; all without a graph.

    Attributes:
        factors: of each layer, decomposed.
        inputs: of each layer, with a 1 for the bias, ``(*batch, in + 1, samples)``.
        slopes: derivatives of the activation that follows each layer.
        outputs: of the network.
    """

    factors: Sequence[Factors]
    inputs: Sequence[Tensor]
    slopes: Sequence[Tensor]
    outputs: Tensor


@torch.no_grad()
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
    layers = [layer.map(Tensor.detach) for layer in layers]
    h, inputs, slopes = x, [], []
    for layer, activation in zip(layers, chain.activations, strict=True):
        ones = [] if layer.bias is None else [torch.ones_like(h[..., :1, :])]
        inputs.append(torch.cat((h, *ones), dim=-2))
        z = layer(h)
        slopes.append(derivative(activation, z))
        h = activation(z)
    s = loss.mean(h)
    found: list[Factors] = []
    for layer, a, slope in zip(layers[::-1], inputs[::-1], slopes[::-1], strict=True):
        s = s * (slope @ slope.mT / slope.shape[-1])
        found.append(Factors.of(s, a @ a.mT))
        s = layer.weight.mT @ s @ layer.weight
    return Curvature(found[::-1], inputs, slopes, h)


@torch.no_grad()
def tangents(layers: Sequence[Layer], at: Curvature, directions: Sequence[Tensor]) -> Tensor:
    """Return J d for directions of single layers, ``(*batch, directions, out, samples)``.

    Args:
        layers: the weights.
        at: the curvature there.
        directions: of each layer in turn, ``(*batch, directions of it, out, in + 1)``.
    """
    blocks: list[Tensor] = []  # one for each layer, (*batch, out, directions, samples)
    for layer, a, slope, own in zip(layers, at.inputs, at.slopes, directions, strict=True):
        weight, count = layer.weight.detach(), own.shape[-3]
        blocks = [
            (weight @ moved.flatten(start_dim=-2)).reshape(*slope.shape[:-1], *moved.shape[-2:])
            for moved in blocks
        ]
        rows = own.detach().movedim(-3, -2).reshape(*slope.shape[:-2], -1, own.shape[-1])
        blocks.append((rows @ a).reshape(*slope.shape[:-1], count, a.shape[-1]))
        for moved in blocks:
            moved.mul_(slope.unsqueeze(-2))
    return torch.cat(blocks, dim=-2).movedim(-2, -3)


@torch.no_grad()
def gradients(layers: Sequence[Layer], at: Curvature, of_output: Tensor) -> list[Tensor]:
    """Return the gradients of augmented weights, ``(*batch, out, in + 1)``, by backpropagation.

    Args:
        layers: the weights.
        at: the curvature there.
        of_output: the gradient in the outputs, ``(*batch, out, samples)``.
    """
    found, back = [], of_output
    for layer, a, slope in zip(layers[::-1], at.inputs[::-1], at.slopes[::-1], strict=True):
        back = back * slope
        found.append(back @ a.mT)
        back = layer.weight.detach().mT @ back
    return found[::-1]


def _decomposed(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, none below 0, and eigenvectors; of I where the matrix is not finite."""
    sound = matrix.isfinite().all(dim=-1).all(dim=-1)[..., None, None]
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    values, vectors = torch.linalg.eigh(torch.where(sound, matrix, identity))
    return values.clamp(min=0.0), vectors


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
