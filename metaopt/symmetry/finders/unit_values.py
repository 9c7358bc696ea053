"""Values of a data flow as units: which of them have the same ones, and how they are laid out.

A value holds segments of classes of units. Where a value is split, the classes are cut, so that
each class is used as a whole. Where values are added, their classes become one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from metaopt.symmetry.site import MatrixView

ROUNDS = 64
"""How often the classes of two values are cut, to make them fit where values are added."""


@dataclass(frozen=True)
class End:
    """A layer that makes units, or reads them.

    Attributes:
        name: its name.
        view: from the place of the first unit, the number of units and the step between them to a
            view with a unit a row, of what makes them, or a column; or to why there is none.
        start: the place of the first unit among the layer's outputs, or inputs.
        step: between the places of units that follow one another.
        total: how many outputs, or inputs, the layer has.
        group: how many of them one group of the layer has, if it reads or makes them in groups.
    """

    name: str
    view: Callable[[int, int, int], MatrixView | str]
    start: int = 0
    step: int = 1
    total: int = 0
    group: int = 1

    def across(self, width: int) -> list[int]:
        """Return after how many units a group ends, where units are not whole groups.

        Args:
            width: the number of units.
        """
        if self.step != 1 or not (self.start % self.group or width % self.group):
            return []
        return list(range(-self.start % self.group, width, self.group))

    def moved(self, count: int) -> End:
        """Return the same end, from a later unit on.

        Args:
            count: how many units come before it.
        """
        return replace(self, start=self.start + count * self.step)


@dataclass
class Units:
    """A class of values with the same units.

    Attributes:
        width: the number of units.
        made: what makes them.
        read: what reads them.
        ended: why no group acts on them; "" as long as one may.
        joined: the class that this one has become part of, if any.
        halves: the classes that this one was cut into, if any.
        labels: names for people of what the values pass through.
        gated: whether they are multiplied with other values.
        signed: whether negative scales pass through, too.
        linear: whether linear maps pass through.
        unsure: whether this holds only where values have the usual dimensions.
        split: whether the way in which they are split is why they ended.
    """

    width: int
    made: list[End] = field(default_factory=list)
    read: list[End] = field(default_factory=list)
    ended: str = ""
    joined: Units | None = None
    halves: tuple[Units, Units] | None = None
    labels: list[str] = field(default_factory=list)
    gated: bool = False
    signed: bool = True
    linear: bool = True
    unsure: bool = False
    split: bool = False

    def root(self) -> Units:
        """Return the class that this one was joined with, at last."""
        return self if self.joined is None else self.joined.root()

    def leaves(self) -> Iterator[Units]:
        """Yield the classes that this one has become, in order."""
        own = self.root()
        if own.halves is None:
            yield own
        else:
            for half in own.halves:
                yield from half.leaves()

    def cut(self, at: int) -> None:
        """Make two classes of this one.

        Args:
            at: the number of units of the first.
        """
        own = self.root()
        if not 0 < at < own.width:
            return
        if own.halves is not None:
            first, second = own.halves
            first.cut(at)
            second.cut(at - first.width)
            return
        own.halves = (
            replace(own, width=at, made=[*own.made], read=[*own.read], labels=[*own.labels]),
            replace(
                own,
                width=own.width - at,
                made=[end.moved(at) for end in own.made],
                read=[end.moved(at) for end in own.read],
                labels=[*own.labels],
            ),
        )

    def join(self, other: Units) -> None:
        """Make one class of this one and another, as a sum of their values does."""
        one, other = self.root(), other.root()
        if one is not other:
            one.made += other.made
            one.read += other.read
            one.labels += other.labels
            one.ended = one.ended or other.ended
            one.split |= other.split
            one.gated |= other.gated
            one.unsure |= other.unsure
            one.signed &= other.signed
            one.linear &= other.linear
            other.joined = one

    def with_next(self, other: Units) -> Units | None:
        """Return one class of these units and others; None unless these come next everywhere.

        Args:
            other: a class that is neither joined nor cut, as this one.
        """
        marks = [
            (o.ended, o.split, o.gated, o.signed, o.linear, o.unsure, sorted(set(o.labels)))
            for o in (self, other)
        ]
        for own, following in ((self.made, other.made), (self.read, other.read)):
            if sorted(map(_key, following)) != sorted(_key(e.moved(self.width)) for e in own):
                return None
        return replace(self, width=self.width + other.width) if marks[0] == marks[1] else None


def _key(end: End) -> tuple[str, int, int]:
    return end.name, end.start, end.step


@dataclass(frozen=True)
class Segment:
    """A class inside a value.

    Attributes:
        units: the class.
        start: the place of its first unit in the value.
        step: between the places of its units.
    """

    units: Units
    start: int = 0
    step: int = 1

    @property
    def key(self) -> tuple[int, int, int]:
        """Where it lies: the places of its units."""
        return self.start, self.step, self.units.width


@dataclass(frozen=True)
class Value:
    """A value of the trace.

    Attributes:
        segments: the classes of its units, with their places; each place once, but twice or more
            in a product.
        width: the number of units.
        layout: "channels" of an image or a sequence, "last" dimension, "blocks" of a row, or
            "pairs": channels that are two dimensions.
        inner: of pairs, the size of the second dimension.
    """

    segments: tuple[Segment, ...]
    width: int
    layout: str
    inner: int = 1

    @property
    def parts(self) -> list[Segment]:
        """The segments with the classes that there are by now."""
        found = []
        for segment in self.segments:
            start = segment.start
            for own in segment.units.leaves():
                found.append(Segment(own, start, segment.step))
                start += own.width * segment.step
        return found

    @property
    def classes(self) -> list[Units]:
        """The classes of its units."""
        return [part.units for part in self.parts]

    def end(self, why: str, split: bool = False) -> None:
        """Say why no group acts on these units; the first reason stays.

        Args:
            why: the reason.
            split: whether that is the way in which the value is split.
        """
        for own in self.classes:
            own.split = own.split if own.ended else split
            own.ended = own.ended or why

    def label(self, name: str) -> None:
        """Note what the value passes through."""
        for own in self.classes:
            own.labels.append(name)

    def part(self, start: int, end: int) -> Value:
        """Return the units from a place on and up to another; classes are cut there.

        Args:
            start: the first place.
            end: the place after the last.
        """
        for segment in self.parts:
            for place in (start, end):
                segment.units.cut(-((segment.start - place) // segment.step))
        inside = (own for own in self.parts if start <= own.start < end)
        segments = tuple(replace(own, start=own.start - start) for own in inside)
        return replace(self, segments=segments, width=end - start)

    def turned(self) -> Value:
        """Return pairs with their two dimensions in the other order."""
        outer = self.width // self.inner
        pieces = [self.part(i * self.inner, (i + 1) * self.inner) for i in range(outer)]
        segments = tuple(
            Segment(own.units, own.start * outer + i, own.step * outer)
            for i, piece in enumerate(pieces)
            for own in piece.parts
        )
        return replace(self, segments=segments, inner=outer)


def concatenated(values: list[Value]) -> Value:
    """Return values side by side.

    Args:
        values: values of one layout.
    """
    segments: list[Segment] = []
    width = 0
    for value in values:
        segments += [replace(own, start=own.start + width) for own in value.segments]
        width += value.width
    return replace(values[0], segments=tuple(segments), width=width)


def fitted(one: Value, other: Value) -> list[tuple[Units, Units]] | None:
    """Return the classes of two values in pairs, as a sum joins them; None where they do not fit.

    Args:
        one: a value.
        other: a value of the same width and layout.
    """
    for _ in range(ROUNDS):
        keys = [sorted(own.key for own in value.parts) for value in (one, other)]
        if keys[0] == keys[1]:
            if len({start for start, _, _ in keys[0]}) < len(keys[0]):
                return None  # a product, which has a place twice
            pairs = zip(
                *(sorted(v.parts, key=lambda o: o.start) for v in (one, other)), strict=True
            )
            return [(a.units, b.units) for a, b in pairs]
        if any(step != 1 for own in keys for _, step, _ in own):
            return None
        for value, wanted in ((one, keys[1]), (other, keys[0])):
            for start, _, _ in wanted:
                value.part(start, value.width)
    return None


def product(one: Value, other: Value) -> Value | None:
    """Return two values multiplied: each unit is scaled with both; None if they share classes.

    Args:
        one: a value.
        other: a value of the same width and layout.
    """
    if {id(own) for own in one.classes} & {id(own) for own in other.classes}:
        return None
    return replace(one, segments=(*one.segments, *other.segments))
