"""A teleportation: a move of the weights along an orbit, with its invariance error."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from metaopt.symmetry.action import relative_change
from metaopt.symmetry.chain import LayerChain
from metaopt.symmetry.element import choose


class Outputs(ABC):
    """The outputs of a model on some data, as a function of its parameters."""

    @abstractmethod
    def __call__(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return the outputs in float64, ``(*batch, rows, columns)``.

        Args:
            parameters: in the order of the move.
        """

    def of_all(self, points: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
        """Return the outputs at several points, each as a call gives them.

        Args:
            points: parameters in the order of the move, of the same shapes each.
        """
        return [self(parameters) for parameters in points]

    @abstractmethod
    def on(self, x: Tensor) -> Outputs:
        """Return the outputs on other data.

        Args:
            x: the data, in the form that the model takes.
        """


@final
@dataclass(frozen=True, eq=False)
class ChainOutputs(Outputs):
    """The outputs of a chain of layers, as a function of its parameters.

    Attributes:
        chain: the chain.
        x: its input, ``(*batch, features, samples)``.
    """

    chain: LayerChain
    x: Tensor

    def __call__(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return the outputs in float64, ``(*batch, out, samples)``.

        See :meth:`Outputs.__call__`.
        """
        layers = self.chain.layers([parameter.double() for parameter in parameters])
        return self.chain.output(layers, self.x.double())

    def of_all(self, points: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
        """Return the outputs at several points, all in one pass. See :meth:`Outputs.of_all`."""
        return self([torch.stack(own) for own in zip(*points, strict=True)]).unbind()

    def on(self, x: Tensor) -> ChainOutputs:
        """Return the outputs on other data, samples in columns. See :meth:`Outputs.on`."""
        return ChainOutputs(self.chain, x)


@dataclass(frozen=True, repr=False)
class Teleportation:
    """A move of the weights along an orbit, with the outputs that show how exact it was.

    Attributes:
        outputs: the model's outputs as a function of the parameters.
        before: the parameters before the move, in order.
        after: the parameters after it.
        rejected: ``(*batch,)`` bool, whether a task kept its weights at one site at least, because
            the move there could not be trusted.
        reverted: ``(*batch,)`` bool, whether the move was taken back afterwards; None if that was
            not checked.
    """

    outputs: Outputs
    before: Sequence[Tensor]
    after: Sequence[Tensor]
    rejected: Tensor
    reverted: Tensor | None = None

    def __repr__(self) -> str:
        error = float(self.invariance_error().max())
        return (
            f"{type(self).__name__}(invariance_error={error:.2e}, stayed={bool(self.stayed.all())})"
        )

    @property
    def stayed(self) -> Tensor:
        """Whether the move was rejected or reverted, ``(*batch,)``."""
        return self.rejected if self.reverted is None else self.rejected | self.reverted

    @torch.no_grad()
    def invariance_error(self, x: Tensor | None = None) -> Tensor:
        """Return the relative change of the outputs that the move made, ``(*batch,)``.

        This is ||F(g.w) - F(w)||_F / ||F(w)||_F. It is computed in float64 at the weights as they
        are stored, so it includes the rounding of float32 weights.

        Args:
            x: data to measure on, in the form that the model takes; by default the batch of the
                move.
        """
        outputs = self.outputs if x is None else self.outputs.on(x)
        return relative_change(outputs(self.before), outputs(self.after))

    def revert_rounding(self, updated_from: Sequence[Tensor], fraction: float) -> Teleportation:
        """Take the move back if it changes the outputs too much compared with the last update.

        If updates hardly change the outputs any more, a move along the orbit would only round the
        weights again.

        Args:
            updated_from: the parameters before the last update, which ended at ``before``.
            fraction: largest change of the outputs, as a fraction of the update's; above 0.
        """
        with torch.no_grad():
            points = (updated_from, self.before, self.after)
            first, updated, moved = self.outputs.of_all(points)
            step, change = (torch.linalg.matrix_norm(d) for d in (updated - first, moved - updated))
        return self.revert(change > fraction * step)

    def revert(self, where: Tensor) -> Teleportation:
        """Take the move back for some tasks.

        Args:
            where: ``(*batch,)`` bool.
        """
        return replace(self, after=choose(where, self.before, self.after), reverted=where)


class OutputChange:
    """The change of the outputs between given parameters and others.

    The outputs at the given parameters are computed once.

    Args:
        outputs: the outputs as a function of the parameters.
        start: the given parameters.
    """

    def __init__(self, outputs: Outputs, start: Sequence[Tensor]) -> None:
        self.outputs = outputs
        with torch.no_grad():
            self._start = outputs(start)

    @torch.no_grad()
    def invariance_error(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return ||F(parameters) - F(start)|| / ||F(start)||, ``(*batch,)``.

        Args:
            parameters: the other parameters.
        """
        return relative_change(self._start, self.outputs(parameters))
