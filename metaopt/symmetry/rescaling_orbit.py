"""The orbit of a module under positive rescaling of the units of its sites."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from metaopt.symmetry.exponential import MAX_ELEMENT
from metaopt.symmetry.orbit import Moved, Orbit
from metaopt.symmetry.rescaling import log_scale_gradient, rescaled
from metaopt.symmetry.site import ModuleSite


@final
class RescalingOrbit(Orbit):
    """Exact for every input. Elements are t of each site, ``(width,)``; there is one problem.

    Args:
        names: of the parameters, in the order in which they are handed over.
        sites: homogeneous ones.
    """

    def __init__(self, names: Sequence[str], sites: Sequence[ModuleSite]) -> None:
        self.names = tuple(names)
        self.sites = tuple(sites)

    def identity(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        device = parameters[0].device
        return [torch.zeros(s.width, dtype=torch.float64, device=device) for s in self.sites]

    def batch_dims(self, parameters: Sequence[Tensor]) -> int:
        return 0

    def move(self, parameters: Sequence[Tensor], elements: Sequence[Tensor]) -> Moved:
        """Refused, as a whole, where a |t| is above 32 or a weight would not be finite."""
        moved = dict(zip(self.names, parameters, strict=True))
        small = [(t.detach().abs() <= MAX_ELEMENT).all() for t in elements]
        sound = torch.stack(small).all()
        for site, t in zip(self.sites, elements, strict=True):
            moved |= rescaled(moved, site, torch.where(sound, t, 0.0))
        finite = [moved[name].detach().isfinite().all() for name in self.names]
        sound = sound & torch.stack(finite).all()
        after = [
            torch.where(sound, moved[name], old)
            for name, old in zip(self.names, parameters, strict=True)
        ]
        return Moved(after, ~sound)

    def pull_back(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
        products = {
            name: parameter.double() * gradient.double()
            for name, parameter, gradient in zip(self.names, parameters, gradients, strict=True)
        }
        return [log_scale_gradient(products, site) for site in self.sites]

    def transport(
        self, gradients: Sequence[Tensor], elements: Sequence[Tensor], squares: bool = False
    ) -> list[Tensor]:
        moved = dict(zip(self.names, gradients, strict=True))
        for site, t in zip(self.sites, elements, strict=True):
            moved |= rescaled(moved, site, -2.0 * t if squares else -t)
        return [moved[name] for name in self.names]
