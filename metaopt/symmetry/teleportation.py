"""A move of the weights along an orbit, with what it takes to judge it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from metaopt.symmetry.action import relative_change
from metaopt.symmetry.chain import LayerChain
from metaopt.symmetry.element import per_task


class Outputs(ABC):
    """A model's outputs on some data, as a function of its parameters."""

    @abstractmethod
    def __call__(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return the outputs in float64, ``(*batch, rows, columns)``.

        Args:
            parameters: in the order of the move.
        """

    @abstractmethod
    def on(self, x: Tensor) -> Outputs:
        """Return the outputs on other data, given as the model takes them."""


@final
@dataclass(frozen=True, eq=False)
class ChainOutputs(Outputs):
    """The outputs of a chain of layers.

    Attributes:
        chain: the chain.
        x: its input, ``(*batch, features, samples)``.
    """

    chain: LayerChain
    x: Tensor

    def __call__(self, parameters: Sequence[Tensor]) -> Tensor:
        layers = self.chain.layers([parameter.double() for parameter in parameters])
        return self.chain.output(layers, self.x.double())

    def on(self, x: Tensor) -> ChainOutputs:
        """See :meth:`Outputs.on`; samples are columns."""
        return ChainOutputs(self.chain, x)


@dataclass(frozen=True, repr=False)
class Teleportation:
    """A move of the weights along an orbit.

    Attributes:
        outputs: the model's outputs as a function of the parameters.
        before, after: the parameters, in order.
        rejected: ``(*batch,)`` bool: at least one site kept its weights for this task, since its
            move could not be trusted.
        reverted: ``(*batch,)`` bool: the move was taken back afterwards; None where nobody asked.
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
        """Return ||F(g.w) - F(w)||_F / ||F(w)||_F, ``(*batch,)``.

        Measured in float64 at the weights as they are stored, so the rounding of float32 weights is
        part of it.

        Args:
            x: other data than the batch, in the form that the model takes.
        """
        outputs = self.outputs if x is None else self.outputs.on(x)
        return relative_change(outputs(self.before), outputs(self.after))

    def revert_rounding(self, updated_from: Sequence[Tensor], fraction: float) -> Teleportation:
        """Take the move back where it changes the output by more than a part of the last update.

        Where nothing is left to gain by an update, moving along the orbit would only round the
        weights again.

        Args:
            updated_from: the parameters before that update, which ended at ``before``.
            fraction: above 0; the largest change of the output that stays, over the update's.
        """
        with torch.no_grad():
            first, updated, moved = map(self.outputs, (updated_from, self.before, self.after))
            step, change = (torch.linalg.matrix_norm(d) for d in (updated - first, moved - updated))
        return self.revert(change > fraction * step)

    def revert(self, where: Tensor) -> Teleportation:
        """Take the move back for the tasks of a mask, ``(*batch,)``."""
        after = [
            torch.where(per_task(where, moved), old, moved)
            for old, moved in zip(self.before, self.after, strict=True)
        ]
        return replace(self, after=after, reverted=where)


class OutputChange:
    """How far other parameters change the outputs from where they start, which is computed once.

    Args:
        outputs: the outputs as a function of the parameters.
        start: the parameters to compare with.
    """

    def __init__(self, outputs: Outputs, start: Sequence[Tensor]) -> None:
        self.outputs = outputs
        with torch.no_grad():
            self._start = outputs(start)

    @torch.no_grad()
    def invariance_error(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return ||F(parameters) - F(start)|| / ||F(start)||, ``(*batch,)``."""
        return relative_change(self._start, self.outputs(parameters))
