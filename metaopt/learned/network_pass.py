"""A network at some weights: its output there, and what the derivatives of the output say.

:class:`~metaopt.learned.chain_pass.ChainPass` is that of a chain of Linear layers, in closed form.
:class:`~metaopt.learned.module_pass.ModulePass` is that of any module, by autograd.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

from torch import Tensor

from metaopt.learned.kronecker import LayerCurvature
from metaopt.output_loss import OutputLoss
from metaopt.symmetry.chain import Layer

ROUNDED = 1e-6  # of a gradient in an output


class Derivatives(ABC):
    """The linear maps between the layers of a network and its output, at some weights.

    Everything is float64 and without a graph. J is the derivative of the outputs in the augmented
    weights [W b] of the layers, or in their coefficients in some basis.

    Attributes:
        outputs: of the network, ``(*batch, out, samples)``.
    """

    outputs: Tensor

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

    def gradients_into(self, places: Sequence[Tensor], of_output: Tensor) -> None:
        """Write J^T v where there is room for it.

        Args:
            places: of each layer, ``(*batch, out, in + 1)``.
            of_output: v, the gradient in the outputs, of their shape.
        """
        for place, own in zip(places, self.gradients(of_output), strict=True):
            place.copy_(own)


class NetworkPass(Derivatives):
    """A forward pass, with its derivatives in the augmented weights of the layers.

    Attributes:
        layers: the weights.
    """

    layers: Sequence[Layer]

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
    def rounding(self) -> list[Tensor]:
        """Return how far gradients may be off by the rounding of v to float32.

        Returns:
            An estimate of the norm for each layer, ``(*batch,)``.
        """

    def in_bases(self, factors: Sequence[LayerCurvature]) -> Derivatives:
        """Return the derivatives in the coefficients of the augmented weights.

        Args:
            factors: the curvature of each layer, in whose basis the coefficients are.
        """
        return InBases(self, factors)


@final
class InBases(Derivatives):
    """The derivatives of any pass in the coefficients of its augmented weights.

    Args:
        at: the pass, of one task.
        factors: the curvature of each layer, in whose basis the coefficients are.
    """

    def __init__(self, at: NetworkPass, factors: Sequence[LayerCurvature]) -> None:
        self.own, self.factors, self.outputs = at, factors, at.outputs

    def _back(self, found: Sequence[Tensor]) -> list[Tensor]:
        return [f.back(own) for f, own in zip(self.factors, found, strict=True)]

    def tangents(self, directions: Sequence[Tensor]) -> Tensor:
        """See :meth:`Derivatives.tangents`."""
        return self.own.tangents(self._back(directions))

    def pushed(self, direction: Sequence[Tensor]) -> Tensor:
        """See :meth:`Derivatives.pushed`."""
        return self.own.pushed(self._back(direction))

    def gradients(self, of_output: Tensor) -> list[Tensor]:
        """See :meth:`Derivatives.gradients`."""
        pairs = zip(self.factors, self.own.gradients(of_output), strict=True)
        return [f.into(own) for f, own in pairs]
