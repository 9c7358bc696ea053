"""From the classes of units that a data flow has, to sites and to reasons why there is none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from metaopt.symmetry.activations import Identity
from metaopt.symmetry.finders.unit_values import End, Units
from metaopt.symmetry.site import LeftOut, MatrixView, Site

UNITS, PAIRS, GATED = "units", "linear pairs", "gated units"


def sites_of(classes: Sequence[Units]) -> dict[Site | LeftOut, str]:
    """Return the sites of classes of units, and reasons for others.

    The text beside a site is not empty where it holds only if values have the usual dimensions.

    Args:
        classes: as layers made them, before they were joined and cut.
    """
    found: dict[Site | LeftOut, str] = {}
    for own in _whole(classes):
        if not own.made or not (own.read or own.split):
            continue
        makers = [_named(end, own.width) for end in own.made]
        readers = [end.name for end in own.read]
        if own.ended:
            found[LeftOut((makers[0], *readers[:1]), own.ended)] = ""
            continue
        incoming, outgoing = (
            [end.view(end.start, own.width, end.step) for end in ends]
            for ends in (own.made, own.read)
        )
        reasons = [view for view in (*incoming, *outgoing) if isinstance(view, str)]
        if reasons:
            found[LeftOut((makers[0], readers[0]), reasons[0])] = ""
            continue
        group, kind = _acts(own)
        many = len(makers) > 1 or len(readers) > 1
        site = Site(
            name=f"{', '.join(makers)} -> {', '.join(readers)}",
            incoming=tuple(view for view in incoming if isinstance(view, MatrixView)),
            outgoing=tuple(view for view in outgoing if isinstance(view, MatrixView)),
            between=Identity() if group == "GL" else None,
            group=group,
            width=own.width,
            layers=(own.made[0].name, own.read[0].name),
            labels=tuple(dict.fromkeys(own.labels)) + ("a skip",) * many,
            plain=group == "GL",
            homogeneous=True,
            kind=kind,
        )
        found[site] = "unsure" if own.unsure else ""
    return found


def _acts(own: Units) -> tuple[str, str]:
    """Return the group that acts on units, and the kind of the site."""
    whole = len(own.made) == len(own.read) == 1 and own.made[0].total == own.width
    if own.linear and not whole:  # whole layers have such a site from another finder
        return "GL", PAIRS
    return ("nonzero", GATED) if own.gated and own.signed else ("positive", UNITS)


def _whole(classes: Sequence[Units]) -> Iterator[Units]:
    """Yield the classes that there are in the end; what was cut for nothing is one again."""
    before: Units | None = None
    seen: set[int] = set()
    for own in (leaf for units in classes for leaf in units.leaves()):
        if id(own) in seen:
            continue
        seen.add(id(own))
        if before is None or not before.follow(own):
            if before is not None:
                yield before
            before = replace(own)
    if before is not None:
        yield before


def _named(end: End, width: int) -> str:
    """Return the name of a layer, with the places of its units where they are not all."""
    return end.name if width == end.total else f"{end.name}[{end.start}:{end.start + width}]"
