"""A control for a search: it moves as far along the orbit, but in a random direction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metaopt.symmetry.element import Element, choose, per_task
from metaopt.symmetry.objectives import LossFunction, per_task_sum
from metaopt.symmetry.orbit import Orbit
from metaopt.symmetry.search import Search, SearchResult, choose_elements


class RandomMove:
    """What a search did, with each T replaced by one of the same norm along a random direction.

    The direction is drawn once and kept over iterations and calls, as a search goes on in much the
    same one; drawn anew each time, the way would be a random walk and end much nearer. The norm is
    taken over all sites of a task. It runs the search first, so it costs as much.

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

    def __call__(
        self, orbit: Orbit, parameters: Sequence[Tensor], loss: LossFunction
    ) -> SearchResult:
        """Move from ``parameters`` on; see :class:`~metaopt.symmetry.search.Search`."""
        model = self.search(orbit, parameters, loss)
        dims = model.rejected.dim()
        current = [parameter.detach() for parameter in parameters]
        rejected, moved = (torch.zeros_like(model.rejected) for _ in range(2))
        taken: list[list[Element]] = []
        for elements in model.elements:
            values = [element.values for element in elements]
            drawn = self._along(values)
            sizes = [per_task_sum([t.square() for t in ts], dims).sqrt() for ts in (values, drawn)]
            scale = sizes[0] / sizes[1].clamp(min=1e-300)
            steps = [
                element.with_values(per_task(scale, own) * own)
                for element, own in zip(elements, drawn, strict=True)
            ]
            with torch.no_grad():
                move = orbit.move(current, steps)
            reached = [parameter.detach() for parameter in move.parameters]
            current = choose(move.rejected, current, reached)
            rejected, moved = rejected | move.rejected, moved | ~move.rejected
            zeros = [step.map(torch.zeros_like) for step in steps]
            taken.append(choose_elements(move.rejected, zeros, steps))
        return SearchResult(current, rejected & ~moved, taken)

    def _along(self, values: Sequence[Tensor]) -> list[Tensor]:
        kept = self.direction
        if kept is None or [t.shape for t in kept] != [t.shape for t in values]:
            kept = self.direction = [self._like(own) for own in values]
        return kept

    def _like(self, values: Tensor) -> Tensor:
        drawn = torch.randn(values.shape, generator=self.generator, dtype=values.dtype)
        return drawn.to(values.device)
