"""The paper's search for a teleport: gradient ascent at a fixed rate, without a line search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaopt.checks import check_positive, check_whole
from metaopt.symmetry.element import Element, choose
from metaopt.symmetry.objectives import (
    LossFunction,
    Objective,
    OfOrbit,
    check_objective,
    gradient_norm,
    on_orbit,
)
from metaopt.symmetry.orbit import Orbit
from metaopt.symmetry.search import SearchResult, choose_elements
from metaopt.symmetry.slope import EvaluatedSlope


@dataclass(frozen=True)
class FixedAscent:
    """w <- exp(rate dJ/dT) . w, some times over; J may fall, and may reach infinity.

    As in the paper's released code. :class:`~metaopt.symmetry.search.GradientAscent` is the one to
    use; this one is there to compare with the paper.

    Attributes:
        iterations: steps of ascent.
        rate: of the objective's gradient.
        objective: what is climbed, ||grad L||^2 by default.
        steps_per_gradient: steps along one gradient of the objective, which add up to one move; 1
            in the released code.
    """

    iterations: int = 10
    rate: float = 1e-4
    objective: Objective | OfOrbit = gradient_norm
    steps_per_gradient: int = 1

    def __post_init__(self) -> None:
        check_whole("iterations", self.iterations)
        check_whole("steps_per_gradient", self.steps_per_gradient)
        check_positive("rate", self.rate, type(self).rate)
        check_objective(self.objective)

    def __call__(
        self, orbit: Orbit, parameters: Sequence[Tensor], loss: LossFunction
    ) -> SearchResult:
        """Climb from ``parameters`` on; see :class:`~metaopt.symmetry.search.Search`."""
        current = [parameter.detach() for parameter in parameters]
        slope = EvaluatedSlope(orbit, on_orbit(self.objective, orbit), loss)
        elements: list[list[Element]] = []
        moved = None
        with orbit.remembering():
            for made in range(0, self.iterations, self.steps_per_gradient):
                size = self.rate * min(self.steps_per_gradient, self.iterations - made)
                steps = [gradient.scaled(size) for gradient in slope.directions(slope.at(current))]
                with torch.no_grad():
                    move = orbit.move(current, steps)
                current = choose(move.rejected, current, move.parameters)
                moved = ~move.rejected if moved is None else moved | ~move.rejected
                zeros = [step.map(torch.zeros_like) for step in steps]
                elements.append(choose_elements(move.rejected, zeros, steps))
        assert moved is not None
        return SearchResult(current, ~moved, elements)
