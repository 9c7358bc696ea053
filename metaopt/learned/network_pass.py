"""A network at some weights: its output there, and what the derivatives of the output say.

:class:`ChainPass` is that of a chain of Linear layers, in closed form.
:class:`~metaopt.learned.module_pass.ModulePass` is that of any module, by autograd.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import final

from torch import Tensor

from metaopt.learned.kinks import is_kinked
from metaopt.learned.kronecker import (
    LayerCurvature,
    Pass,
    factored,
    gradients,
    moments,
    norm,
    passed,
    pushed,
    tangents,
)
from metaopt.output_loss import OutputLoss
from metaopt.symmetry.chain import Layer, LayerChain
from metaopt.symmetry.inputs import Eigen, LayerInput

ROUNDED = 1e-6  # of a gradient in an output


class NetworkPass(ABC):
    """A forward pass, and the linear maps between its layers and its output.

    Everything is float64 and without a graph. J is the derivative of the outputs in the augmented
    weights [W b] of the layers.

    Attributes:
        layers: the weights.
        outputs: of the network, ``(*batch, out, samples)``.
    """

    layers: Sequence[Layer]
    outputs: Tensor

    @abstractmethod
    def kinked(self) -> bool:
        """Return whether the output has kinks. See :mod:`metaopt.learned.kinks`."""

    @abstractmethod
    def at(self, layers: Sequence[Layer]) -> NetworkPass:
        """Return the pass at other weights.

        Args:
            layers: the weights.
        """

    @abstractmethod
    def curvatures(self, loss: OutputLoss, step: int) -> Sequence[LayerCurvature]:
        """Return the curvature of each layer, decomposed.

        Args:
            loss: of the outputs.
            step: its number, which is the seed of what is drawn at random.
        """

    @abstractmethod
    def tangents(self, directions: Sequence[Tensor]) -> Tensor:
        """Return J d for directions of single layers, ``(*batch, directions, out, samples)``.

        Args:
            directions: of each layer in turn, ``(*batch, directions of it, out, in + 1)``.
        """

    @abstractmethod
    def pushed(self, direction: Sequence[Tensor]) -> Tensor:
        """Return J d of one direction of all layers, ``(*batch, out, samples)``.

        Args:
            direction: d, ``(*batch, out, in + 1)`` of each layer.
        """

    @abstractmethod
    def gradients(self, of_output: Tensor) -> list[Tensor]:
        """Return J^T v, the gradients of augmented weights, ``(*batch, out, in + 1)``.

        Args:
            of_output: v, the gradient in the outputs, of their shape.
        """

    @abstractmethod
    def rounding(self) -> list[Tensor]:
        """Return how far gradients may be off by the rounding of v to float32.

        Returns:
            An estimate of the norm for each layer, ``(*batch,)``.
        """


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
        """See :meth:`NetworkPass.tangents`."""
        return tangents(self.layers, self.known, directions)

    def pushed(self, direction: Sequence[Tensor]) -> Tensor:
        """See :meth:`NetworkPass.pushed`."""
        return pushed(self.layers, self.known, direction)

    def gradients(self, of_output: Tensor) -> list[Tensor]:
        """See :meth:`NetworkPass.gradients`."""
        return gradients(self.layers, self.known, of_output)

    def rounding(self) -> list[Tensor]:
        """See :meth:`NetworkPass.rounding`; from the norms of the weights downstream."""
        found: list[Tensor] = []
        downstream: Tensor | float = ROUNDED * self.outputs.shape[-1] ** 0.5
        for layer, a in zip(self.layers[::-1], self.known.inputs[::-1], strict=True):
            found.append(downstream * norm(a))
            downstream = downstream * norm(layer.weight)
        return found[::-1]
