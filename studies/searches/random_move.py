"""A control for a search: it moves as far along the orbit, but in a random direction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metaopt.symmetry.action import per_problem
from metaopt.symmetry.objectives import LossFunction, entry_sum
from metaopt.symmetry.orbit import Orbit
from metaopt.symmetry.search import Climb, Search, choose


class RandomMove:
    """What a search did, with each T replaced by one of the same norm along a random direction.

    The direction is drawn once and kept over iterations and calls, as a search goes on in much the
    same one; drawn anew each time, the way would be a random walk and end much nearer. The norm is
    taken over all sites of a problem. It runs the search first, so it costs as much.

    Args:
        search: whose steps are copied in size.
        generator: of the direction.
    """

    def __init__(
        self,
        search: Search,
        generator: torch.Generator,
    ) -> None:
        self.search = search
        self.generator = generator
        self.direction: list[Tensor] | None = None

    def __call__(self, orbit: Orbit, parameters: Sequence[Tensor], loss: LossFunction) -> Climb:
        """From ``parameters`` to where the random steps end."""
        model = self.search(orbit, parameters, loss)
        dims = model.refused.dim()
        current = [parameter.detach() for parameter in parameters]
        refused, moved = (torch.zeros_like(model.refused) for _ in range(2))
        taken = []
        for elements in model.taken:
            drawn = self._along(elements)
            sizes = [entry_sum([t.square() for t in ts], dims).sqrt() for ts in (elements, drawn)]
            scale = sizes[0] / sizes[1].clamp(min=1e-300)
            steps = [per_problem(scale, element) * element for element in drawn]
            with torch.no_grad():
                move = orbit.move(current, steps)
            reached = [parameter.detach() for parameter in move.parameters]
            current = choose(move.refused, current, reached)
            refused, moved = refused | move.refused, moved | ~move.refused
            taken.append(choose(move.refused, [torch.zeros_like(t) for t in steps], steps))
        return Climb(current, refused & ~moved, taken)

    def _along(self, elements: Sequence[Tensor]) -> list[Tensor]:
        kept = self.direction
        if kept is None or [t.shape for t in kept] != [t.shape for t in elements]:
            kept = self.direction = [self._like(element) for element in elements]
        return kept

    def _like(self, element: Tensor) -> Tensor:
        drawn = torch.randn(element.shape, generator=self.generator, dtype=element.dtype)
        return drawn.to(element.device)
