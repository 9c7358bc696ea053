"""The pass of a chain of Linear layers at some weights, in closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from metaopt.learned.kinks import is_kinked
from metaopt.learned.kronecker import (
    Curvature,
    Factors,
    LayerCurvature,
    Pass,
    factored,
    moments,
    norm,
    passed,
)
from metaopt.learned.network_pass import ROUNDED, Derivatives, NetworkPass
from metaopt.output_loss import OutputLoss
from metaopt.symmetry.chain import Layer, LayerChain
from metaopt.symmetry.inputs import Eigen, LayerInput


@final
class ChainDerivatives(Derivatives):
    """The derivatives of the output of a chain.

    In the basis of a curvature U diag(s) U^T, V diag(c) V^T, the coefficients K of a layer stand
    for U K V^T, which is multiplied with the input a. So V^T a takes the place of a once, and U
    stands before what comes of it.

    Args:
        layers: the weights, in float64.
        at: the forward pass there.
        factors: the curvature of each layer, in whose basis coefficients are; None for augmented
            weights.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        at: Pass | Curvature,
        factors: Sequence[Factors] | None = None,
    ) -> None:
        self.outputs, self.slopes = at.outputs, at.slopes
        self.weights = [layer.weight.detach() for layer in layers]
        self.inputs = list(at.inputs)
        self.lefts: list[Tensor | None] = [None] * len(layers)
        if factors is not None:
            pairs = zip(factors, at.inputs, strict=True)
            self.inputs = [f.right.mT @ a for f, a in pairs]
            self.lefts = [None if f.plain else f.left for f in factors]
        self._transposed = [
            (w.mT, a.mT, None if u is None else u.mT)
            for w, a, u in zip(self.weights, self.inputs, self.lefts, strict=True)
        ]

    def tangents(self, directions: Sequence[Tensor]) -> Tensor:
        """See :meth:`Derivatives.tangents`."""
        moved: Tensor | None = None  # (*batch, out, directions so far, samples)
        for w, a, u, slope, own in zip(
            self.weights, self.inputs, self.lefts, self.slopes, directions, strict=True
        ):
            shape = (*own.shape[:-3], own.shape[-2], -1, a.shape[-1])
            rows = own.detach().transpose(-3, -2).flatten(start_dim=-3, end_dim=-2)
            fresh = (rows @ a).view(shape)
            if u is not None:
                fresh = (u @ fresh.flatten(start_dim=-2)).view(shape)
            if moved is not None:
                through = w @ moved.flatten(start_dim=-2)
                fresh = torch.cat((through.view(shape), fresh), dim=-2)
            moved = fresh if slope is None else fresh.mul_(slope.unsqueeze(-2))
        assert moved is not None  # a chain has layers
        return moved.transpose(-2, -3)

    def pushed(self, direction: Sequence[Tensor]) -> Tensor:
        """See :meth:`Derivatives.pushed`."""
        moved: Tensor | None = None
        for w, a, u, slope, own in zip(
            self.weights, self.inputs, self.lefts, self.slopes, direction, strict=True
        ):
            fresh = own @ a if u is None else u @ (own @ a)
            if moved is not None:
                fresh = fresh.add_(w @ moved)
            moved = fresh if slope is None else fresh.mul_(slope)
        assert moved is not None  # a chain has layers
        return moved

    def gradients(self, of_output: Tensor) -> list[Tensor]:
        """See :meth:`Derivatives.gradients`; by backpropagation."""
        return [back @ a for back, a in self._backpropagated(of_output)][::-1]

    def gradients_into(self, places: Sequence[Tensor], of_output: Tensor) -> None:
        """See :meth:`Derivatives.gradients_into`."""
        found = self._backpropagated(of_output)
        for place, (back, a) in zip(reversed(places), found, strict=True):
            torch.matmul(back, a, out=place)

    def _backpropagated(self, of_output: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Two factors of the gradient of each layer, the last layer first."""
        back = of_output
        for place in reversed(range(len(self.weights))):
            w, a, u = self._transposed[place]
            slope = self.slopes[place]
            if slope is not None:
                back = back * slope
            yield back if u is None else u @ back, a
            if place:
                back = w @ back


@final
class ChainPass(NetworkPass):
    """A pass of a chain of Linear layers.

    Args:
        chain: the layers.
        layers: their weights, in float64.
        x: the input of the chain.
        known: the pass, where it is known already.
        of_inputs: gives the second moments of the inputs, where they are known already.
    """

    def __init__(
        self,
        chain: LayerChain,
        layers: Sequence[Layer],
        x: LayerInput,
        known: Pass | None = None,
        of_inputs: Callable[[], Sequence[Eigen]] | None = None,
    ) -> None:
        self.chain, self.layers, self.x = chain, layers, x
        self.known = passed(chain, layers, x) if known is None else known
        self.outputs = self.known.outputs
        self.of_inputs = of_inputs or (lambda: moments(chain, self.known, x))

    @cached_property
    def _derivatives(self) -> ChainDerivatives:
        return ChainDerivatives(self.layers, self.known)

    def kinked(self) -> bool:
        """See :meth:`NetworkPass.kinked`."""
        return any(is_kinked(own) for own in self.chain.activations)

    def at(self, layers: Sequence[Layer]) -> ChainPass:
        """See :meth:`NetworkPass.at`."""
        return ChainPass(self.chain, layers, self.x)

    def curvatures(self, loss: OutputLoss, step: int) -> Sequence[LayerCurvature]:
        """See :meth:`NetworkPass.curvatures`; nothing is drawn."""
        return factored(self.layers, self.known, self.of_inputs(), loss)

    def tangents(self, directions: Sequence[Tensor]) -> Tensor:
        """See :meth:`Derivatives.tangents`."""
        return self._derivatives.tangents(directions)

    def pushed(self, direction: Sequence[Tensor]) -> Tensor:
        """See :meth:`Derivatives.pushed`."""
        return self._derivatives.pushed(direction)

    def gradients(self, of_output: Tensor) -> list[Tensor]:
        """See :meth:`Derivatives.gradients`."""
        return self._derivatives.gradients(of_output)

    def in_bases(self, factors: Sequence[LayerCurvature]) -> ChainDerivatives:
        """See :meth:`NetworkPass.in_bases`; the layers of a chain have factors."""
        own = [f for f in factors if isinstance(f, Factors)]
        return ChainDerivatives(self.layers, self.known, own)

    def rounding(self) -> list[Tensor]:
        """See :meth:`NetworkPass.rounding`; from the norms of the weights downstream."""
        found: list[Tensor] = []
        downstream: Tensor | float = ROUNDED * self.outputs.shape[-1] ** 0.5
        for layer, a in zip(self.layers[::-1], self.known.inputs[::-1], strict=True):
            found.append(downstream * norm(a))
            downstream = downstream * norm(layer.weight)
        return found[::-1]
