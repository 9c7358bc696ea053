"""Training on the networks of one cell of the zoo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

from metaopt.tasks import NetworkFamily, TaskSampler
from metaopt.training.distributions import Drawn, TaskDistribution, draw_seeds
from studies.zoo.cells import CELLS


@final
@dataclass(frozen=True)
class CellTraining(TaskDistribution):
    """Networks of one cell of the zoo, in float64.

    Attributes:
        cell: its name.
    """

    cell: str = CELLS[0].name

    @property
    def _family(self) -> NetworkFamily:
        cell = next(cell for cell in CELLS if cell.name == self.cell)
        return cell.family("float64")

    def most(self, batch_size: int) -> int:
        """Return ``batch_size``, as each task counts as one. See :meth:`TaskDistribution.most`."""
        return batch_size

    def draw(self, batch_size: int, generator: torch.Generator) -> Drawn:
        """See :meth:`TaskDistribution.draw`."""
        return Drawn(self._family, draw_seeds(batch_size, generator))

    def validation(self, count: int) -> list[tuple[TaskSampler, int]]:
        """See :meth:`TaskDistribution.validation`."""
        return [(self._family, count)]
