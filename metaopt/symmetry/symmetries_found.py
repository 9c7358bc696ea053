"""The sites of a network as a sequence that people can read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import final, overload

from metaopt.errors import UserError, shown
from metaopt.symmetry.finders.sites import Sites, grouped_lines
from metaopt.symmetry.site import LeftOut, Site


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
