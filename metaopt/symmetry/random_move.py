"""A control for searches: as far along the orbit, in a direction drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaopt.symmetry.action import per_problem
from metaopt.symmetry.objectives import LossFunction, entry_sum
from metaopt.symmetry.orbit import Orbit
from metaopt.symmetry.search import Climb, choose


@dataclass(frozen=True)
class RandomMove:
    """What a search did, with each T replaced by a random one of the same Frobenius norm.

    The norm is taken over all sites of a problem. It runs the search first, so it costs as much.

    Attributes:
        search: whose steps are copied in size.
        generator: of the directions.
    """

    search: Callable[[Orbit, Sequence[Tensor], LossFunction], Climb]
    generator: torch.Generator

    def __call__(self, orbit: Orbit, parameters: Sequence[Tensor], loss: LossFunction) -> Climb:
        """From ``parameters`` to where the random steps end."""
        model = self.search(orbit, parameters, loss)
        dims = model.refused.dim()
        current = [parameter.detach() for parameter in parameters]
        refused = torch.zeros_like(model.refused)
        taken = []
        for elements in model.taken:
            drawn = [self._like(element) for element in elements]
            sizes = [entry_sum([t.square() for t in ts], dims).sqrt() for ts in (elements, drawn)]
            scale = sizes[0] / sizes[1].clamp(min=1e-300)
            steps = [per_problem(scale, element) * element for element in drawn]
            with torch.no_grad():
                move = orbit.move(current, steps)
            moved = [parameter.detach() for parameter in move.parameters]
            current = choose(move.refused, current, moved)
            refused = refused | move.refused
            taken.append(choose(move.refused, [torch.zeros_like(t) for t in steps], steps))
        return Climb(current, refused, taken)

    def _like(self, element: Tensor) -> Tensor:
        drawn = torch.randn(element.shape, generator=self.generator, dtype=element.dtype)
        return drawn.to(element.device)
