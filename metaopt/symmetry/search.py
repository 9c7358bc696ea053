"""Where to teleport: gradient ascent on the Lie algebra, with backtracking (eq. 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metaopt.errors import UserError
from metaopt.symmetry.action import per_problem
from metaopt.symmetry.objectives import LossFunction, Objective, entry_sum, gradient_norm
from metaopt.symmetry.orbit import Orbit


class Climb(NamedTuple):
    """Where a search ended, and the way there."""

    parameters: list[Tensor]
    refused: Tensor  # (*batch,) bool: stayed at the start, the last move being refused
    taken: list[list[Tensor]]  # T of each site at each iteration, in order; 0 where it stayed


Search = Callable[[Orbit, Sequence[Tensor], LossFunction], Climb]
"""From parameters to another point of their orbit."""


@dataclass(frozen=True)
class GradientAscent:
    """Climbs an objective along the orbit; no problem ends below its start or at infinity.

    Each iteration is w <- exp(a G) . w with G the objective's gradient in T at T = 0, divided by
    its norm: ``size`` is the Frobenius norm of the first T tried, a problem's own size is halved
    while its objective would not rise, and after ``halvings`` failures it stays where it is.

    Attributes:
        iterations: steps of ascent.
        size: initial norm of T a step, the same for each problem.
        halvings: attempts a step.
        objective: what is climbed, ||grad L||^2 by default.
        most: a move to a value above this one is not accepted, and its size is halved as if it
            had not risen; a problem that starts above stays there. The value is the objective's:
            of the default one, a squared norm.
        most_ratio: the same, as a multiple of each problem's value where the search starts (of a
            negative value, which rises towards 0, a fraction 1 / most_ratio).
    """

    iterations: int = 10
    size: float = 0.1
    halvings: int = 8
    objective: Objective = gradient_norm
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
        current = [parameter.detach() for parameter in parameters]
        value = self._value(current, loss)
        bound = self._bound(value)
        size = torch.full_like(value, self.size, dtype=torch.float64)
        refused = torch.zeros_like(value, dtype=torch.bool)
        moved = torch.zeros_like(refused)
        taken: list[list[Tensor]] = []
        for _ in range(self.iterations):
            directions = self._directions(orbit, current, loss, value.dim())
            accepted = [torch.zeros_like(direction) for direction in directions]
            climbing = torch.ones_like(refused)
            for _ in range(self.halvings + 1):
                elements = [per_problem(size * climbing, d) * d for d in directions]
                with torch.no_grad():
                    move = orbit.move(current, elements)
                tried_at = [parameter.detach() for parameter in move.parameters]
                tried = self._value(tried_at, loss)
                better = climbing & ~move.refused & (tried > value) & (tried <= bound)
                current = choose(better, tried_at, current)
                accepted = choose(better, elements, accepted)
                value = torch.where(better, tried, value)
                moved = moved | better
                refused = torch.where(climbing, move.refused, refused)
                climbing = climbing & ~better
                size = torch.where(climbing, size / 2, size)
                if not climbing.any():
                    break
            taken.append(accepted)
        return Climb(current, refused & ~moved, taken)

    def _value(self, parameters: Sequence[Tensor], loss: LossFunction) -> Tensor:
        with torch.enable_grad():
            return self.objective(parameters, loss).detach().double()

    def _bound(self, start: Tensor) -> Tensor:
        """The largest value to accept, finite, ``(*batch,)``."""
        largest = torch.full_like(start, min(self.most, torch.finfo(start.dtype).max))
        if math.isinf(self.most_ratio):
            return largest
        ratio = torch.where(start < 0, start / self.most_ratio, start * self.most_ratio)
        return torch.minimum(ratio, largest)

    def _directions(
        self, orbit: Orbit, parameters: Sequence[Tensor], loss: LossFunction, batch_dims: int
    ) -> list[Tensor]:
        """Unit gradients of the objective in T at T = 0, jointly over the sites of a problem."""
        elements = [element.requires_grad_() for element in orbit.identity(parameters)]
        with torch.enable_grad():
            value = self.objective(orbit.move(parameters, elements).parameters, loss)
            gradients = torch.autograd.grad(value.sum(), elements)
        gradients = tuple(g.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) for g in gradients)
        norm = entry_sum([g.square() for g in gradients], batch_dims).sqrt().clamp(min=1e-300)
        return [g / per_problem(norm, g) for g in gradients]


def choose(mask: Tensor, new: Sequence[Tensor], old: Sequence[Tensor]) -> list[Tensor]:
    """``new`` for the problems of the mask, ``(*batch,)``, ``old`` for the others."""
    return [torch.where(per_problem(mask, a), a, b) for a, b in zip(new, old, strict=True)]
