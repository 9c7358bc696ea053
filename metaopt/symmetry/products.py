"""What a network computes at its sites, as a function of its parameters, without data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from metaopt.errors import UserError
from metaopt.symmetry.orbit import Orbit
from metaopt.symmetry.site import named
from metaopt.symmetry.teleportation import Outputs


@final
@dataclass(frozen=True, eq=False)
class SiteProducts(Outputs):
    """The products of the outgoing and the incoming matrices of all sites.

    They are what a group that acts at a site keeps, whatever the data are: between a unit that a
    positive scale passes and the next layer, the products of single entries.

    Attributes:
        orbit: the sites, and the names of the parameters.
    """

    orbit: Orbit

    def __call__(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return all products as one row in float64, ``(1, entries)``."""
        weights = named(self.orbit.names, parameters)
        rows = []
        for site, _ in self.orbit.acting:
            made = torch.cat([v.read_augmented(weights).double() for v in site.incoming], dim=-1)
            used = torch.cat([view.read(weights).double() for view in site.outgoing], dim=-2)
            if site.group in ("positive", "nonzero"):  # unit by unit: the norm of an outer product
                sizes = made.norm(dim=-1) * used.norm(dim=-2)
                rows.append(sizes.reshape(1, -1))
            else:
                rows.append((used @ made).reshape(1, -1))
        return torch.cat(rows, dim=1) if rows else torch.zeros(1, 0, dtype=torch.float64)

    def on(self, x: object) -> Outputs:
        """Refuse other data, as these products know none."""
        raise UserError(
            "expected no data for a move that was made without a batch, got some: compare what "
            "the model gives before and after"
        )
