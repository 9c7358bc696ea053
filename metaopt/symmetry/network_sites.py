"""All symmetries of a network that are known here: its sites, verified on inputs where given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from metaopt.errors import UserError, shown
from metaopt.symmetry.auto import for_all_data
from metaopt.symmetry.finders.find import find_sites
from metaopt.symmetry.finders.kinds import KINDS
from metaopt.symmetry.finders.network import Candidate, Network
from metaopt.symmetry.nested import as_inputs
from metaopt.symmetry.pair import Pair
from metaopt.symmetry.site import LeftOut, MatrixView, Site
from metaopt.symmetry.symmetries_found import Symmetries
from metaopt.symmetry.verify import verified
from metaopt.wrappers import unwrapped

PAIRS = "linear pairs"
UNITS = "units"


def symmetries(model: nn.Module, *inputs: Any, also: Sequence[Site | Pair] = ()) -> Symmetries:
    """Return all sites of a network where a group is known to keep the function on all data.

    With inputs each is verified by doing: a random move is made there in float64, on a copy of the
    weights, and what the network gives is compared. A site that does not hold is left out, with the
    reason. So the inputs have to reach every part of the network. Without inputs nothing is
    verified, and what only a run can tell is not proposed. The model is not changed.

    Args:
        model: any module, or a wrapper of it (:mod:`metaopt.wrappers`).
        *inputs: what the model is called with: its arguments, or one mapping of keyword arguments.
        also: sites to take in besides, which are verified like the others.

    Raises:
        UserError: if the model is no module, or what is declared does not fit it.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> layers = nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, 3), nn.Linear(3, 2)
        >>> print(symmetries(nn.Sequential(*layers), torch.rand(5, 9)))
        2 sites, 13 free directions; each verified by a random move in float64
          units: 1 site, 4 free directions
            0 -> 2: 4 positive scales
          linear pairs: 1 site, 9 free directions
            2 -> 3: GL(3)
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"expected an nn.Module, got {type(model).__name__}: give the model itself")
    model = unwrapped(model)
    network = Network(model, as_inputs(inputs))
    declared = [item.site(model) if isinstance(item, Pair) else item for item in also]
    for item in declared:
        if not isinstance(item, Site):
            raise UserError(
                f"expected sites or pairs to take in, got {shown(item)}: give Pair(incoming, "
                f"outgoing)"
            )
    candidates, left_out = _candidates(network)
    candidates += [Candidate.of(site, known=True) for site in declared]
    kept = []
    for candidate in candidates:
        why = network.obstacle(candidate.alternatives[0])
        if why is None:
            kept.append(candidate)
        else:
            left_out.append(LeftOut(candidate.alternatives[0].layers, why))
    if network.x is None:
        sites = _without_doubles([candidate.alternatives[0] for candidate in kept])
        return Symmetries(sites, _once(left_out, sites))
    result = verified(network, kept)
    sites = _without_doubles(result.sites)
    return Symmetries(sites, _once([*left_out, *result.left_out], sites), verified=True)


def known_symmetries(model: nn.Module) -> Symmetries:
    """Return the sites that are known from the classes of the modules, without a run.

    These are sites of torch's, transformers' and peft's own modules, and those that are found in
    the data flow where torch.fx can trace it.

    Args:
        model: the module.
    """
    network = Network(model)
    candidates, others = _candidates(network)
    sites: list[Site] = []
    left_out: list[LeftOut] = []
    for candidate in candidates:
        site = candidate.alternatives[0]
        why = network.obstacle(site)
        if why is None and not candidate.known:
            why = "it is known by its names alone: give sites=metaopt.symmetries(model, x)"
        if why is None:
            sites.append(site)
        else:
            left_out.append(LeftOut(site.layers, why))
    found = _without_doubles(sites)
    return Symmetries(found, _once([*left_out, *others], found))


def _candidates(network: Network) -> tuple[list[Candidate], list[LeftOut]]:
    """Return what all finders propose, and what they left out."""
    candidates: list[Candidate] = []
    left_out: list[LeftOut] = []
    found = find_sites(network.model)
    for propose in KINDS.values():
        for item in propose(network):
            if isinstance(item, LeftOut):
                left_out.append(item)
            else:
                candidates.append(item)
    for site in found.found:
        acting = for_all_data(site)
        if acting is not None:
            linear = acting.action.group == "GL"
            kind = PAIRS if linear else UNITS
            group = "GL" if linear else "positive"
            candidates.append(Candidate.of(replace(site, kind=kind, group=group), known=True))
    if not network.traces and network.exported is None and found.left_out:
        untraced = found.left_out[0].reason
        left_out.append(LeftOut(("the data flow",), f"it is not known, as {untraced}"))
    return candidates, left_out


def _without_doubles(sites: Sequence[Site]) -> tuple[Site, ...]:
    """Return sites without those that move what another one moves by a group as large.

    They stand kind by kind, and the sites of a kind in the order of the data flow.
    """
    largest: dict[object, Site] = {}
    for site in sites:
        moved = _moves(site)
        if moved not in largest or site.directions > largest[moved].directions:
            largest[moved] = site
    order = list(dict.fromkeys(site.kind for site in largest.values()))
    return tuple(sorted(largest.values(), key=lambda site: order.index(site.kind)))


def _moves(site: Site) -> tuple[frozenset[object], frozenset[object]]:
    """Return what a site moves: the parts of the parameters on both sides."""

    def part(view: MatrixView) -> object:
        return view.parameter, view.at, view.narrow

    return frozenset(map(part, site.incoming)), frozenset(map(part, site.outgoing))


def _once(left_out: Sequence[LeftOut], sites: Sequence[Site]) -> tuple[LeftOut, ...]:
    """Return reasons without repetition, and without those that a site contradicts."""
    ends = {site.layers for site in sites}
    made = {site.layers[0] for site in sites}
    return tuple(
        out
        for out in dict.fromkeys(left_out)
        if out.names[:2] not in ends and not (len(out.names) == 1 and out.names[0] in made)
    )
