"""What a search climbs: an objective on an orbit, by evaluation or by transported gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from metaopt.symmetry.element import Element, choose
from metaopt.symmetry.objectives import LossFunction, Objective, first_order, form_of
from metaopt.symmetry.orbit import Orbit
from metaopt.symmetry.transported import Blocks


class Point:
    """Tensors with the value of an objective there.

    Args:
        tensors: parameters, or gradients; detached.
        value: ``(*batch,)``.
        leaves: the parameters that ``value`` can be differentiated in; None if it cannot.

    Attributes:
        tensors: as given.
        value: ``(*batch,)``, detached, float64.
        graph: the value and the leaves, until they are used.
    """

    def __init__(
        self, tensors: list[Tensor], value: Tensor, leaves: list[Tensor] | None = None
    ) -> None:
        self.tensors = tensors
        self.value = value.detach().double()
        self.graph = None if leaves is None else (value, leaves)

    def where(self, mask: Tensor, other: Point) -> Point:
        """Return ``other`` for the tasks of the mask, ``(*batch,)``, else this point."""
        if mask.all():
            return other
        if not mask.any():
            return self
        tensors = choose(mask, other.tensors, self.tensors)
        return Point(tensors, torch.where(mask, other.value, self.value))


class Slope(Protocol):
    """What a gradient ascent climbs."""

    def directions(self, point: Point) -> list[Element]:
        """Return the gradient of the objective with respect to T, at T = 0, of each site."""

    def moved(
        self, point: Point, elements: Sequence[Element], last: bool = False
    ) -> tuple[Point, Tensor]:
        """Return the point exp(T).w, and which tasks were rejected there, ``(*batch,)`` bool.

        Args:
            point: w.
            elements: T, as in ``directions``.
            last: whether no directions will be asked for at the new point, as far as is known.
        """


@dataclass(frozen=True)
class EvaluatedSlope:
    """An objective that is evaluated at each point of an orbit.

    Attributes:
        orbit: the orbit.
        objective: the objective.
        loss: the losses as a function of the parameters.
    """

    orbit: Orbit
    objective: Objective
    loss: LossFunction

    def at(self, parameters: Sequence[Tensor], last: bool = False) -> Point:
        """Return the point of some parameters; see :meth:`Slope.moved` for ``last``."""
        tensors = [p.detach() if p.requires_grad else p for p in parameters]
        if last and (form := form_of(self.objective)) is not None:
            losses, gradients = first_order(tensors, self.loss)
            return Point(tensors, form.value(gradients, losses.dim()))
        return Point(tensors, *self._graph(tensors))

    def gradients(self, point: Point) -> list[Tensor]:
        """Return the objective's gradients, one for each parameter; 0 for what is not finite."""
        value, leaves = self._graph(point.tensors) if point.graph is None else point.graph
        point.graph = None
        gradients = torch.autograd.grad(value, leaves, torch.ones_like(value), allow_unused=True)
        return [
            torch.zeros_like(leaf) if g is None else g.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            for g, leaf in zip(gradients, leaves, strict=True)
        ]

    def directions(self, point: Point) -> list[Element]:
        """Pull the objective's gradients back. See :class:`Slope`."""
        return self.orbit.pull_back(point.tensors, self.gradients(point))

    def moved(
        self, point: Point, elements: Sequence[Element], last: bool = False
    ) -> tuple[Point, Tensor]:
        """Move the parameters, and evaluate the objective there. See :class:`Slope`."""
        with torch.no_grad():
            move = self.orbit.move(point.tensors, elements)
        return self.at(move.parameters, last), move.rejected

    def _graph(self, parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        with torch.enable_grad():
            leaves = [parameter.detach().requires_grad_() for parameter in parameters]
            return self.objective(leaves, self.loss), leaves


@dataclass(frozen=True)
class TransportedSlope:
    """The squared norm of a gradient that is transported along an orbit of linear actions.

    Attributes:
        gradient: the gradient at the start; points are reached from there, and elements are those
            of its blocks.
        sign: 1, or -1 for what is lowered.
    """

    gradient: Blocks
    sign: float

    def at(self, state: list[Tensor]) -> Point:
        """Return the point where the gradient is in a state of its blocks."""
        return Point(state, self.sign * self.gradient.squared_norm(state))

    def directions(self, point: Point) -> list[Element]:
        """Differentiate the squared norm. See :class:`Slope`."""
        return [e.scaled(self.sign) for e in self.gradient.pull_back(point.tensors)]

    def moved(
        self, point: Point, elements: Sequence[Element], last: bool = False
    ) -> tuple[Point, Tensor]:
        """Transport the gradient. See :class:`Slope`."""
        reached = self.at(self.gradient.moved(point.tensors, elements))
        bounded = torch.stack([element.bounded().all() for element in elements]).all()
        return reached, ~(bounded & reached.value.isfinite())
