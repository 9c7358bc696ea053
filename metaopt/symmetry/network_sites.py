"""All symmetries of a network that are known here: its sites, verified on inputs where given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, final, overload

from torch import nn

from metaopt.errors import UserError, shown
from metaopt.symmetry.activations import Identity
from metaopt.symmetry.auto import for_all_data
from metaopt.symmetry.finders.find import find_sites
from metaopt.symmetry.finders.kinds import KINDS
from metaopt.symmetry.finders.network import Candidate, Network, features_last
from metaopt.symmetry.finders.projection import Projection
from metaopt.symmetry.finders.sites import Sites, grouped_lines
from metaopt.symmetry.nested import as_inputs
from metaopt.symmetry.site import LeftOut, MatrixView, Site
from metaopt.symmetry.verify import verified
from metaopt.wrappers import unwrapped

PAIRS = "linear pairs"
UNITS = "units"
DECLARED = "declared"


@final
@dataclass(frozen=True, repr=False)
class Symmetries(Sequence[Site]):
    """The sites of a network where a group keeps the function on all data.

    It is a sequence of sites. Its ``print`` shows them by kind, with the number of free directions,
    and what was left out. Its ``of_kind`` and slices are such sequences too.

    Attributes:
        sites: the sites.
        left_out: layers that were looked at and left out, with the reasons.
        verified: whether each site was moved at random and kept what the network gives.
    """

    sites: tuple[Site, ...]
    left_out: tuple[LeftOut, ...] = ()
    verified: bool = False

    def __len__(self) -> int:
        return len(self.sites)

    @overload
    def __getitem__(self, place: int) -> Site: ...
    @overload
    def __getitem__(self, place: slice) -> Symmetries: ...
    def __getitem__(self, place: int | slice) -> Site | Symmetries:
        if isinstance(place, slice):
            return replace(self, sites=self.sites[place])
        return self.sites[place]

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)

    @property
    def directions(self) -> int:
        """The number of free directions of all sites together."""
        return sum(site.directions for site in self.sites)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of the sites, in order."""
        return tuple(dict.fromkeys(site.kind for site in self.sites))

    def of_kind(self, *kinds: str) -> Symmetries:
        """Return the sites of some kinds alone.

        Args:
            *kinds: such as "values and outputs"; see ``kinds``.

        Raises:
            UserError: for a kind of which there is no site.
        """
        for kind in kinds:
            if kind not in self.kinds:
                raise UserError(
                    f"expected a kind of {', '.join(self.kinds) or 'no site'}, got {shown(kind)}: "
                    f"name one"
                )
        return replace(self, sites=tuple(site for site in self.sites if site.kind in kinds))

    def as_sites(self) -> Sites:
        """Return the sites in the form that optimizers take."""
        return Sites(self.sites, self.left_out, "sites were given")

    def __repr__(self) -> str:
        how = "verified" if self.verified else "nothing was verified"
        return f"{len(self)} sites, {self.directions:,} free directions, {how}"

    def __str__(self) -> str:
        how = (
            "each verified by a random move in float64"
            if self.verified
            else "nothing was verified: give inputs, symmetries(model, x)"
        )
        lines = [f"{len(self)} sites, {self.directions:,} free directions; {how}"]
        for kind in self.kinds:
            own = [site for site in self.sites if site.kind == kind]
            free = sum(site.directions for site in own)
            lines.append(f"  {kind}: {_count(own)}, {free:,} free directions")
            lines += [f"    {_line(site)}" for site in own]
        if self.left_out:
            lines.append(f"Left out: {len(self.left_out)}")
            lines += [f"  {line}" for line in grouped_lines(self.left_out)]
        return "\n".join(lines)


def _count(sites: Sequence[Site]) -> str:
    return f"{len(sites)} site{'s' * (len(sites) != 1)}"


def _line(site: Site) -> str:
    heads = f"{site.heads} × " if site.head_dims else ""
    group = {
        "GL": f"GL({site.width})",
        "positive": f"{site.width} positive scales",
        "nonzero": f"{site.width} scales",
        "orthogonal": f"O({site.width})",
        "orthogonal_of_ones": f"O({site.width - 1})",
        "plane_rotations": f"{len(site.planes)} scaled rotations",
    }.get(site.group, site.group)
    return f"{site.name}: {heads}{group}"


@dataclass(frozen=True)
class Pair:
    """A site that a user declares by the names of its weights.

    Attributes:
        incoming: the weight that makes the features, by name, or several.
        outgoing: the weight that uses them, or several.
        heads: how many heads the features have, with a group element each.
        group: "GL", or "positive" or "nonzero" for scales.
        name: for people.

    Example:
        >>> Pair("encode.weight", "decode.weight").group
        'GL'
    """

    incoming: str | tuple[str, ...]
    outgoing: str | tuple[str, ...]
    heads: int = 1
    group: str = "GL"
    name: str = ""

    def site(self, model: nn.Module) -> Site:
        """Return the site in a model. Biases beside the incoming weights move along.

        Args:
            model: the model.

        Raises:
            UserError: for a name that is no parameter, and for sizes that do not fit.
        """
        if self.group not in ("GL", "positive", "nonzero"):
            raise UserError(
                f"expected a group of GL, positive, nonzero, got {shown(self.group)}: name one"
            )
        made, used = (
            (side,) if isinstance(side, str) else tuple(side)
            for side in (self.incoming, self.outgoing)
        )
        parameters = dict(model.named_parameters())
        into = [self._side(model, parameters, name, True) for name in made]
        out_of = [self._side(model, parameters, name, False) for name in used]
        widths = {view.width for view in (*into, *out_of)}
        if len(widths) != 1:
            raise UserError(
                f"expected one number of features on both sides of a site, got {sorted(widths)} of "
                f"{', '.join((*made, *used))}: name weights that meet"
            )
        other = [_other(parameters, view) for view in (*into, *out_of)]
        linear = self.group == "GL"
        return Site(
            name=self.name or f"{', '.join(made)} -> {', '.join(used)}",
            incoming=tuple(v.rows(size) for v, size in zip(into, other, strict=False)),
            outgoing=tuple(
                v.columns(size)[0] for v, size in zip(out_of, other[len(into) :], strict=True)
            ),
            between=Identity() if linear else None,
            group=self.group,
            width=widths.pop(),
            layers=(made[0].removesuffix(".weight"), used[0].removesuffix(".weight")),
            plain=linear,
            homogeneous=True,
            kind=DECLARED,
        )

    def _side(
        self, model: nn.Module, parameters: dict[str, nn.Parameter], name: str, makes: bool
    ) -> Projection:
        weight = parameters.get(name)
        if weight is None or weight.dim() != 2:
            raise UserError(
                f"expected the name of a matrix of the model, got {shown(name)}: name one of "
                f"named_parameters()"
            )
        holder = model.get_submodule(name.rpartition(".")[0])
        turned = type(holder).__name__ == "Conv1D" and features_last(holder)
        last = turned if makes else not turned
        size = int(weight.shape[1 if last else 0])
        if size % self.heads:
            raise UserError(
                f"expected {size} features of {name} in {self.heads} heads, got a rest of "
                f"{size % self.heads}: give another number of heads"
            )
        bias = f"{name.removesuffix('weight')}bias" if name.endswith("weight") else ""
        own = bias if makes and bias in parameters else None
        return Projection(name, name, own, last, (self.heads, size // self.heads), 0, 1)


def _other(parameters: dict[str, nn.Parameter], view: Projection) -> int:
    return int(parameters[view.weight].shape[0 if view.features_last else 1])


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
    if not network.traces and found.left_out:
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
    found = {name for site in sites for name in site.layers}
    return tuple(
        out
        for out in dict.fromkeys(left_out)
        if out.names[:2] not in ends and not (len(out.names) == 1 and out.names[0] in found)
    )
