"""Compute losses at many points w + t d around the weights w, as many at a time as fit in memory.

In a chain of layers the first product is shared: (W + t D) x = W x + t (D x). So D x is computed
once for all displacements t, and for all networks of a batch that see the same x.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils.checkpoint import checkpoint

from metaopt.symmetry.chain import Layer, LayerChain
from metaopt.symmetry.objectives import LossFunction

BUDGET = 2**19
"""How many numbers the features of a layer may have, over all points of a chunk.

In float32 this is 2 MB, which a processor's cache holds."""

KEPT = 2**26
"""How many numbers of D x are kept: 256 MB in float32. More are computed anew in each chunk."""

ColumnLoss = Callable[[Tensor], Tensor]
"""A function from outputs of networks, ``(*points, out, samples)``, to losses, ``(*points,)``."""


@dataclass(frozen=True)
class Points:
    """The points w + t d, for T displacements t and D directions d.

    Attributes:
        displacements: t, ``(T,)``.
        directions: d: one tensor a parameter, ``(D, *shape of the parameter)``.
    """

    displacements: Tensor
    directions: Sequence[Tensor]

    def chunks(self, per_point: int) -> Iterator[tuple[slice, slice]]:
        """Cut the points into chunks that fit in memory.

        Args:
            per_point: how many numbers a point takes.

        Yields:
            A slice of the displacements and one of the directions.
        """
        fit = max(1, BUDGET // max(per_point, 1))
        count, total = len(self.displacements), len(self.directions[0])
        across = max(1, min(total, fit // count))
        along = count if across > 1 else min(count, fit)
        starts = product(range(0, total, across), range(0, count, along))
        for d, t in starts:
            yield slice(t, t + along), slice(d, d + across)


def losses_of(
    loss: LossFunction, parameters: Sequence[Tensor], points: Points, per_point: int = 0
) -> Tensor:
    """Compute any loss at all points, differentiably in the parameters.

    The points of a chunk go through ``torch.func.vmap``. They are taken one by one if the loss has
    an operation that ``vmap`` cannot batch. All tasks of a batch share the directions.

    Args:
        loss: a function of a list of parameters.
        parameters: w, in order.
        points: where the loss is computed.
        per_point: how many numbers a point takes; by default those of the parameters.

    Returns:
        ``(T, D, *batch)``, where ``batch`` is the shape of the loss.
    """
    numbers = per_point or sum(parameter.numel() for parameter in parameters)

    def some(t: Tensor, *rest: Tensor) -> Tensor:
        own, directions = rest[: len(parameters)], rest[len(parameters) :]
        shifted = [
            p + t.reshape(-1, 1, *(1,) * p.dim()).to(p.dtype) * _for_all_problems(d, p)
            for p, d in zip(own, directions, strict=True)
        ]
        flat = [p.flatten(0, 1) for p in shifted]
        try:
            values = vmap(lambda *at: loss(at), randomness="same")(*flat)
        except RuntimeError:  # without a batching rule; what is wrong otherwise is so here too
            values = torch.stack([loss(at) for at in zip(*flat, strict=True)])
        return values.reshape(len(t), -1, *values.shape[1:])

    def chunk(along: slice, across: slice) -> Tensor:
        directions = [d[across] for d in points.directions]
        return _kept_small(some, points.displacements[along], *parameters, *directions)

    return _assembled(points, numbers, chunk)


def _for_all_problems(directions: Tensor, parameter: Tensor) -> Tensor:
    """Reshape ``(D, *shape)`` to ``(D, 1, ..., *shape)``, with a 1 for each batch dimension."""
    batch_dims = parameter.dim() - directions.dim() + 1
    return directions.reshape(len(directions), *(1,) * batch_dims, *directions.shape[1:])


class Surroundings:
    """Compute losses at points around networks that are chains of layers of one shape.

    The product D x of the first layers of the directions with x is computed once. So keep the
    object while x and the points stay the same.

    Args:
        chain: the layers of the networks.
        x: the samples in columns, ``(inputs, samples)``.
        points: where the losses are computed.
    """

    def __init__(self, chain: LayerChain, x: Tensor, points: Points) -> None:
        self.chain, self.x, self.points = chain, x, points
        self.directions = chain.layers(points.directions)
        first = self.directions[0].map(Tensor.detach)
        size = first.weight.shape[0] * first.weight.shape[1] * x.shape[-1]
        self._first = first(x) if size <= KEPT else None

    def first(self, across: slice) -> Tensor:
        """Return D x for a slice of the directions, ``(directions, units, samples)``."""
        if self._first is not None:
            return self._first[across]
        return self.directions[0].map(lambda d: d.detach()[across])(self.x)

    def losses(self, layers: Sequence[Layer], loss: ColumnLoss) -> Tensor:
        """Compute the losses of one network at all points, differentiably in its layers.

        Args:
            layers: of the network, in order.
            loss: of the outputs.

        Returns:
            ``(T, D)``.
        """
        widest = max(layer.weight.shape[-2] for layer in layers)
        weights = sum(layer.weight.numel() for layer in layers[1:])
        z = layers[0](self.x)
        own = self.chain.parameters(layers[1:])

        def some(t: Tensor, z: Tensor, first: Tensor, *rest: Tensor) -> Tensor:
            inner, outer = rest[: len(own)], rest[len(own) :]
            scale = t.reshape(-1, 1, 1, 1).to(z.dtype)
            h = self.chain.activations[0](z + scale * first)
            moved = [
                p + t.reshape(-1, *(1,) * d.dim()).to(p.dtype) * d
                for p, d in zip(inner, outer, strict=True)
            ]
            rear = _rear(self.chain).layers(moved)
            for layer, activation in zip(rear, self.chain.activations[1:], strict=True):
                h = activation(layer(h))
            return loss(h)

        def chunk(along: slice, across: slice) -> Tensor:
            outer = [d[across] for d in self.chain.parameters(self.directions[1:])]
            displacements = self.points.displacements[along]
            return _kept_small(some, displacements, z, self.first(across), *own, *outer)

        return _assembled(self.points, widest * self.x.shape[-1] + weights, chunk)


def _rear(chain: LayerChain) -> LayerChain:
    """Return the chain of all layers but the first."""
    return LayerChain(chain.activations[1:], chain.biased[1:])


def _kept_small(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Call a function that the backward pass calls again, so that no chunk keeps its features."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        result: Tensor = checkpoint(function, *tensors, use_reentrant=False)
        return result
    return function(*tensors)


def _assembled(points: Points, per_point: int, chunk: Callable[[slice, slice], Tensor]) -> Tensor:
    """Compute all chunks, and put them side by side, ``(T, D, ...)``."""
    columns: list[Tensor] = []
    column: list[Tensor] = []
    for along, across in points.chunks(per_point):
        column.append(chunk(along, across))
        if along.stop >= len(points.displacements):
            columns.append(torch.cat(column))
            column = []
    return torch.cat(columns, dim=1)
