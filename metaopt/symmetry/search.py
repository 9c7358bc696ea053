"""Where to teleport: gradient ascent on the Lie algebra, with backtracking (eq. 3)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metaopt.errors import UserError
from metaopt.symmetry.action import per_problem
from metaopt.symmetry.objectives import (
    LossFunction,
    Objective,
    OfOrbit,
    entry_sum,
    gradient_norm,
    on_orbit,
)
from metaopt.symmetry.orbit import Orbit


class Climb(NamedTuple):
    """Where a search ended, and the way there."""

    parameters: list[Tensor]
    refused: Tensor  # (*batch,) bool: stayed at the start, the last move being refused
    taken: list[list[Tensor]]  # T of each site at each iteration, in order; 0 where it stayed


NEAR = 0.05
"""A search ends when so little of the way from its start to its bound is left: more costs more than
it brings."""

TINY = 1e-6
"""Or so little, as a fraction of the bound: no way at all."""

Search = Callable[[Orbit, Sequence[Tensor], LossFunction], Climb]
"""From parameters to another point of their orbit."""


def check_search(search: object) -> None:
    """Complain of what is no search, as an objective by itself.

    Raises:
        UserError: if it cannot be called with an orbit, parameters and a loss.
    """
    if search is None:
        return
    try:
        inspect.signature(search).bind(None, None, None)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise UserError(
            f"expected a search, called with an orbit, parameters and a loss, got "
            f"{type(search).__name__}: give an objective to one, GradientAscent(objective=...)"
        ) from None


class Point:
    """Parameters, and an objective at them; its gradient only when asked for, once.

    Args:
        parameters: detached.
        value: ``(*batch,)``, a function of ``leaves``; or detached, without leaves.
    """

    def __init__(
        self,
        objective: Objective,
        loss: LossFunction,
        parameters: list[Tensor],
        value: Tensor,
        leaves: list[Tensor] | None = None,
    ) -> None:
        self.parameters = parameters
        self.value = value.detach().double()
        self._objective, self._loss = objective, loss
        self._graph = None if leaves is None else (value, leaves)

    def gradients(self) -> list[Tensor]:
        """Of the objective, one a parameter; what is not finite as 0."""
        if self._graph is None:
            self._graph = _graph(self._objective, self.parameters, self._loss)
        (value, leaves), self._graph = self._graph, None
        ones = torch.ones_like(value)
        slopes = torch.autograd.grad(value, leaves, ones, allow_unused=True)
        return [
            torch.zeros_like(leaf) if g is None else g.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            for g, leaf in zip(slopes, leaves, strict=True)
        ]

    def where(self, mask: Tensor, other: Point) -> Point:
        """``other`` for the problems of the mask, ``(*batch,)``."""
        if mask.all():
            return other
        if not mask.any():
            return self
        parameters = choose(mask, other.parameters, self.parameters)
        value = torch.where(mask, other.value, self.value)
        return Point(self._objective, self._loss, parameters, value)


def evaluate(objective: Objective, parameters: Sequence[Tensor], loss: LossFunction) -> Point:
    """The objective at ``parameters``."""
    value, leaves = _graph(objective, parameters, loss)
    return Point(objective, loss, [leaf.detach() for leaf in leaves], value, leaves)


def _graph(
    objective: Objective, parameters: Sequence[Tensor], loss: LossFunction
) -> tuple[Tensor, list[Tensor]]:
    with torch.enable_grad():
        leaves = [parameter.detach().requires_grad_() for parameter in parameters]
        return objective(leaves, loss), leaves


def _shortened(start: Tensor, tried: Tensor, bound: Tensor) -> Tensor:
    """By how much a step that was not accepted is shortened, ``(*batch,)``: half, or less.

    One that passed the bound aims at it along the chord, below which a convex objective lies.
    """
    aimed = (1 - NEAR / 2) * (bound - start) / (tried - start)
    passed = (tried > bound) & tried.isfinite()
    return torch.where(passed, aimed.clamp(0.1, 0.9), 0.5)


def _units(directions: Sequence[Tensor], batch_dims: int) -> list[Tensor]:
    """Divided by their norm, jointly over the sites of a problem."""
    norm = entry_sum([d.square() for d in directions], batch_dims).sqrt().clamp(min=1e-300)
    return [d / per_problem(norm, d) for d in directions]


@dataclass(frozen=True)
class GradientAscent:
    """Climbs an objective along the orbit; no problem ends below its start or at infinity.

    Each iteration is w <- exp(a G) . w with G the objective's gradient in T at T = 0, divided by
    its norm: ``size`` is the Frobenius norm of the first T tried, a problem's own size is halved
    while its objective would not rise, or shortened where it would pass its bound, and after
    ``halvings`` failures in one iteration it has arrived, as it has when a twentieth of the way
    to its bound is left. The search ends when all have.

    Attributes:
        iterations: steps of ascent.
        size: initial norm of T a step, the same for each problem.
        halvings: attempts a step.
        objective: what is climbed, ||grad L||^2 by default.
        most: a move to a value above this one is not accepted; a problem that starts above stays
            there. The value is the objective's: of the default one, a squared norm.
        most_ratio: the same, as a multiple of each problem's value where the search starts (of a
            negative value, which rises towards 0, a fraction 1 / most_ratio).
    """

    iterations: int = 10
    size: float = 0.1
    halvings: int = 8
    objective: Objective | OfOrbit = gradient_norm
    most: float = math.inf
    most_ratio: float = math.inf

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.halvings < 0 or not 0 < self.size < float("inf"):
            raise UserError(
                f"expected iterations >= 1, halvings >= 0 and size > 0, got "
                f"{self.iterations}, {self.halvings} and {self.size}: "
                "the defaults are 10, 8 and 0.1"
            )
        if math.isnan(self.most) or not self.most_ratio > 1:
            raise UserError(
                f"expected a number as most and most_ratio > 1, got {self.most} and "
                f"{self.most_ratio}: inf is no bound"
            )

    def __call__(self, orbit: Orbit, parameters: Sequence[Tensor], loss: LossFunction) -> Climb:
        """From ``parameters`` to where the ascent ends."""
        objective = on_orbit(self.objective, orbit)
        here = evaluate(objective, parameters, loss)
        bound = self._bound(here.value)
        size = torch.full_like(here.value, self.size, dtype=torch.float64)
        refused = torch.zeros_like(here.value, dtype=torch.bool)
        moved = torch.zeros_like(refused)
        room = torch.maximum(NEAR * (bound - here.value), TINY * bound.abs())
        arrived = bound - here.value <= room
        taken: list[list[Tensor]] = []
        for _ in range(self.iterations):
            if arrived.all():
                break
            directions = _units(orbit.pull_back(here.parameters, here.gradients()), arrived.dim())
            start = here
            accepted = [torch.zeros_like(direction) for direction in directions]
            climbing = ~arrived
            for _ in range(self.halvings + 1):
                elements = [per_problem(size * climbing, d) * d for d in directions]
                with torch.no_grad():
                    move = orbit.move(start.parameters, elements)
                tried = evaluate(objective, move.parameters, loss)
                better = (
                    climbing & ~move.refused & (tried.value > start.value) & (tried.value <= bound)
                )
                here = here.where(better, tried)
                accepted = choose(better, elements, accepted)
                moved = moved | better
                refused = torch.where(climbing, move.refused, refused)
                climbing = climbing & ~better
                shorter = size * _shortened(start.value, tried.value, bound)
                size = torch.where(climbing, shorter, size)
                if not climbing.any():
                    break
            arrived = arrived | climbing | (bound - here.value <= room)
            taken.append(accepted)
        return Climb(here.parameters, refused & ~moved, taken)

    def _bound(self, start: Tensor) -> Tensor:
        """The largest value to accept, finite, ``(*batch,)``."""
        largest = torch.full_like(start, min(self.most, torch.finfo(start.dtype).max))
        if math.isinf(self.most_ratio):
            return largest
        ratio = torch.where(start < 0, start / self.most_ratio, start * self.most_ratio)
        return torch.minimum(ratio, largest)


def choose(mask: Tensor, new: Sequence[Tensor], old: Sequence[Tensor]) -> list[Tensor]:
    """``new`` for the problems of the mask, ``(*batch,)``, ``old`` for the others."""
    return [torch.where(per_problem(mask, a), a, b) for a, b in zip(new, old, strict=True)]
