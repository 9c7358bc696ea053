"""From the classes of units that a data flow has, to sites and to reasons why there is none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from metaopt.symmetry.activations import Identity
from metaopt.symmetry.finders.unit_values import End, Units
from metaopt.symmetry.site import LeftOut, MatrixView, Site

UNITS, PAIRS, GATED = "units", "linear pairs", "gated units"


def sites_of(classes: Sequence[Units]) -> dict[Site | LeftOut, str]:
    """Return the sites of classes of units, and reasons for others.

    The text beside a site is not empty where it is sure only if values have the usual dimensions.

    Args:
        classes: as layers made them, before they were joined and cut.
    """
    found: dict[Site | LeftOut, str] = {}
    for own in _whole(classes):
        if not own.made or not (own.read or own.split or own.unsure):
            continue
        makers = [_named(end, own.width) for end in own.made]
        readers = [end.name for end in own.read]
        if own.ended:
            found[LeftOut((makers[0], *readers[:1]), own.ended)] = ""
            continue
        if not own.read:
            continue
        if reason := _entangled(own):
            found[LeftOut((makers[0], readers[0]), reason)] = ""
            continue
        incoming, outgoing = _views(own.made, own.width), _views(own.read, own.width)
        if isinstance(incoming, str) or isinstance(outgoing, str):
            reason = incoming if isinstance(incoming, str) else str(outgoing)
            found[LeftOut((makers[0], readers[0]), reason)] = ""
            continue
        group, kind = _acts(own)
        many = len(makers) > 1 or len(readers) > 1
        site = Site(
            name=f"{', '.join(makers)} -> {', '.join(readers)}",
            incoming=incoming,
            outgoing=outgoing,
            between=Identity() if group == "GL" else None,
            group=group,
            width=own.width,
            layers=(own.made[0].name, own.read[0].name),
            labels=tuple(dict.fromkeys(own.labels)) + ("a skip",) * many,
            plain=group == "GL",
            homogeneous=True,
            kind=kind,
        )
        found[site] = "unsure" if own.unsure or own.gated else ""
    return found


def _acts(own: Units) -> tuple[str, str]:
    """Return the group that acts on units, and the kind of the site."""
    whole = len(own.made) == len(own.read) == 1 and own.made[0].total == own.width
    if own.linear and not whole:  # whole layers have such a site from another finder
        return "GL", PAIRS
    return ("nonzero", GATED) if own.gated and own.signed else ("positive", UNITS)


def _entangled(own: Units) -> str:
    """Return why the matrices of a site would overlap; "" if they do not."""
    both = [end.name for end in own.made if end.name in {other.name for other in own.read}]
    if both:
        return f"{both[0]} makes such units of the same units, which is not handled"
    taken: set[tuple[str, int]] = set()
    for end in own.read:
        places = {(end.name, end.start + unit * end.step) for unit in range(own.width)}
        if taken & places:
            return f"{end.name} takes units that are multiplied with themselves"
        taken |= places
    return ""


def _views(ends: Sequence[End], width: int) -> tuple[MatrixView, ...] | str:
    """Return the views of layers that make units, or read them, or why one has none."""
    views = [end.view(end.start, width, end.step) for end in ends]
    reasons = [view for view in views if isinstance(view, str)]
    return reasons[0] if reasons else tuple(v for v in views if isinstance(v, MatrixView))


def _whole(classes: Sequence[Units]) -> Iterator[Units]:
    """Yield the classes that there are in the end; what was cut for nothing is one again."""
    leaves = {id(leaf): leaf for units in classes for leaf in units.leaves()}
    for leaf in leaves.values():
        for end in (*leaf.made, *leaf.read):
            for place in end.across(leaf.width):
                leaf.cut(place)
    leaves = {id(part): part for leaf in leaves.values() for part in leaf.leaves()}
    before: Units | None = None
    for own in leaves.values():
        both = None if before is None else before.with_next(own)
        if both is not None and not isinstance(_views((*both.made, *both.read), both.width), str):
            before = both
            continue
        if before is not None:
            yield before
        before = own
    if before is not None:
        yield before


def _named(end: End, width: int) -> str:
    """Return the name of a layer, with the places of its units where they are not all."""
    return end.name if width == end.total else f"{end.name}[{end.start}:{end.start + width}]"
