"""What ``action="auto"`` means: at each site of a model, which group acts."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import torch
from torch import Tensor

from metaopt.symmetry.actions import ACTIONS, make_action
from metaopt.symmetry.finders.sites import Sites
from metaopt.symmetry.nested import Inputs, samples_in, tensors_in
from metaopt.symmetry.orbit import ActingSite
from metaopt.symmetry.projected import GROUPS
from metaopt.symmetry.site import Site

AUTO = "auto"


class Returns(Enum):
    """Whether all further steps are made on the batch that is given."""

    YES = "yes"  # it came twice in a row
    UNKNOWN = "unknown"  # it is the first that was seen
    NO = "no"  # another one came before it


def for_all_data(site: Site, names: Sequence[str] | None = None) -> ActingSite | None:
    """Return the largest group that keeps the function on all data at a site, or None.

    Args:
        site: the site.
        names: names of the actions to choose from, by default all that are registered. GL is
            larger than positive scales.

    Returns:
        The site with the action of the group; None if no group keeps the function on all data.
    """
    if names is None and site.group in GROUPS:
        return ActingSite(site, GROUPS[site.group]())
    exact = [
        action for action in map(make_action, ACTIONS if names is None else names)
        if action.max_samples(site) == float("inf")
    ]  # fmt: skip
    exact.sort(key=lambda action: action.group != "GL")
    return ActingSite(site, exact[0]) if exact else None


def choose_actions(
    sites: Sites,
    samples: int | None,
    returns: Returns,
    names: Sequence[str] | None = None,
) -> tuple[ActingSite, ...]:
    """Choose the sites where a group acts, and the action of each, as ``action="auto"`` does.

    At each site the largest group acts that is exact for all data. A group that is exact only on
    the given batch changes the function elsewhere. So such a group acts only on a chain of Linear
    layers, at all of its sites, and only in two cases: if the batch is known to return, or if no
    group is exact for all data and no other batch was seen. (Otherwise a last batch of 4 rows, say,
    would be moved by GL, and the output on the rest of the data would change by 30 %.)

    Args:
        sites: all sites of the model.
        samples: rows of the batch; None if there is no batch, and then only groups act that are
            exact for all data.
        returns: whether further steps are made on the same batch.
        names: names of the actions to choose from, the preferred one first; by default all that
            are registered, in that order.

    Returns:
        The sites that act, in the order of the data flow; none if no group is exact.
    """
    everywhere = [
        acting for site in sites.found if (acting := for_all_data(site, names)) is not None
    ]
    stands_for_all = returns is Returns.YES or (returns is Returns.UNKNOWN and not everywhere)
    if samples is not None and stands_for_all:
        for action in map(make_action, ACTIONS if names is None else names):
            if action.uses_inputs and sites.exact_everywhere(action, samples):
                return tuple(ActingSite(site, action) for site in sites.found)
    return tuple(everywhere)


def fingerprint(x: Inputs) -> Tensor:
    """Return three numbers that differ between batches, and between orders of one batch, ``(3,)``.

    Args:
        x: a batch, samples in rows: a tensor, or tensors inside tuples and mappings.
    """
    sums = [0.0, 0.0]
    for place, tensor in enumerate(tensors_in(x), start=1):
        own = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        flat = own.detach().reshape(-1).double()
        ramp = torch.linspace(1.0, 2.0, flat.numel(), dtype=torch.float64, device=flat.device)
        own_sums = torch.stack((flat.sum(), flat @ ramp)).tolist()
        sums = [total + place * more for total, more in zip(sums, own_sums, strict=True)]
    return torch.tensor((*sums, float(samples_in(x))), dtype=torch.float64)
