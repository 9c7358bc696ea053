"""Actions of groups that are smaller than GL: T is projected onto their Lie algebra.

They act as GL does between two matrices: g on what makes the features, g^-1 on what uses them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from metaopt.errors import UserError
from metaopt.registry import Registry
from metaopt.symmetry.action import ALL_DATA, Action
from metaopt.symmetry.actions import BothSides
from metaopt.symmetry.closed_form import Proposal, SiteMatrices
from metaopt.symmetry.element import Element, Turn, Way
from metaopt.symmetry.site import Site

GROUPS: Registry[Callable[[], Action]] = Registry("group")
"""The actions of groups that ``Site.group`` may name, besides GL and scales of units."""


class ProjectedAction(BothSides):
    """An action whose T is projected onto the Lie algebra of a group, orthogonally.

    A subclass says what the projection is.
    """

    exact_when = "a finder says that this group acts"

    @abstractmethod
    def project(self, values: Tensor, site: Site) -> Tensor:
        """Return the nearest matrix of the Lie algebra.

        Args:
            values: dense, ``(*batch, k, k)``.
            site: where the group acts.
        """

    def max_samples(self, site: Site) -> float:
        """Return infinity where a site has this group, else 0."""
        return ALL_DATA if self.obstacle(site) is None and self.exact_inverse else 0

    def obstacle(self, site: Site) -> str | None:
        """Return that the site has another group; None if it has this one."""
        return None if site.group == self.group else f"the group there is {site.group}"

    def at(self, element: Element, site: Site) -> Element:
        """Return an element with its T projected.

        Args:
            element: any element.
            site: where it acts.

        Raises:
            UserError: for a turn that need not be in the group.
        """
        if isinstance(element, Turn):
            if self.turns:
                return element
            raise UserError(
                f"expected T of the group at {site.name}, got a rotation, which {site.group} need "
                "not have: give a T"
            )
        if isinstance(element, Way):
            steps = tuple(self.at(step, site) for step in element.steps)
            return replace(element, steps=steps)
        return Element(self.project(element.dense(), site))

    def propose(self, element: Element, matrices: SiteMatrices) -> Proposal:
        """Return all moved matrices."""
        return super().propose(self.at(element, matrices.site), matrices)

    def pull_back_matrices(
        self, matrices: SiteMatrices, v_in: Sequence[Tensor], v_out: Sequence[Tensor]
    ) -> Tensor:
        """Return the gradient with respect to T, projected."""
        return self.project(super().pull_back_matrices(matrices, v_in, v_out), matrices.site)

    def transport(
        self, element: Element, site: Site, buffers: Mapping[str, Tensor], squares: bool = False
    ) -> dict[str, Tensor]:
        """Transport by the projected element. See :meth:`Action.transport`."""
        return super().transport(self.at(element, site), site, buffers, squares)


@final
@GROUPS.register("orthogonal")
class OrthogonalAction(ProjectedAction):
    """Rotations Q = exp(T) of skew T."""

    group = "orthogonal"
    turns = True

    def project(self, values: Tensor, site: Site) -> Tensor:
        """Return (T - T^T) / 2."""
        return (values - values.mT) / 2


@final
@GROUPS.register("orthogonal_of_ones")
class OnesAction(ProjectedAction):
    """Rotations that fix the vector of ones, which a LayerNorm takes away."""

    group = "orthogonal_of_ones"

    def project(self, values: Tensor, site: Site) -> Tensor:
        """Return P (T - T^T) P / 2, where P takes the mean away."""
        skew = (values - values.mT) / 2
        skew = skew - skew.mean(dim=-1, keepdim=True)
        return skew - skew.mean(dim=-2, keepdim=True)


@final
@GROUPS.register("plane_rotations")
class PlanesAction(ProjectedAction):
    """A scale and a rotation of each plane of two units, and GL of the units that are in none."""

    group = "plane_rotations"

    def project(self, values: Tensor, site: Site) -> Tensor:
        """Return the blocks ((a, -b), (b, a)) of the planes, and the block of the other units."""
        first, second = torch.tensor(site.planes, device=values.device).T
        a = (values[..., first, first] + values[..., second, second]) / 2
        b = (values[..., second, first] - values[..., first, second]) / 2
        projected = torch.zeros_like(values)
        projected[..., first, first] = a
        projected[..., second, second] = a
        projected[..., second, first] = b
        projected[..., first, second] = -b
        free = torch.ones(values.shape[-1], dtype=torch.bool, device=values.device)
        free[first] = free[second] = False
        rest = free.nonzero().flatten()
        rows, columns = rest[:, None], rest[None, :]
        projected[..., rows, columns] = values[..., rows, columns]
        return projected
