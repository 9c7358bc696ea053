"""Values of a data flow as units: which of them have the same ones, and how they are laid out."""

from __future__ import annotations

from dataclasses import dataclass, field

from metaopt.symmetry.site import MatrixView


@dataclass
class Units:
    """A class of values with the same units.

    Attributes:
        width: the number of units.
        made: what makes them: names of modules, and views with a unit a row.
        read: what reads them: names of modules, and views with a unit a column.
        ended: why no group acts on them; "" as long as one may.
        joined: the class that this one has become part of, if any.
        labels: names for people of what the values pass through.
    """

    width: int
    made: list[tuple[str, MatrixView]] = field(default_factory=list)
    read: list[tuple[str, MatrixView]] = field(default_factory=list)
    ended: str = ""
    joined: Units | None = None
    labels: list[str] = field(default_factory=list)

    def root(self) -> Units:
        """Return the class that this one was joined with, at last."""
        return self if self.joined is None else self.joined.root()

    def join(self, other: Units) -> None:
        """Make one class of this one and another, as a sum of their values does."""
        one, other = self.root(), other.root()
        if one is not other:
            one.made += other.made
            one.read += other.read
            one.ended = one.ended or other.ended
            one.labels += other.labels
            other.joined = one


@dataclass(frozen=True)
class Value:
    """A value of the trace.

    Attributes:
        parts: the classes of its units; several, in order, where units were concatenated.
        layout: "channels" of an image or a sequence, "last" dimension, or "blocks" of a row.
    """

    parts: tuple[Units, ...]
    layout: str

    @property
    def widths(self) -> tuple[int, ...]:
        """The number of units of each part."""
        return tuple(part.width for part in self.parts)

    def end(self, why: str) -> None:
        """Say why no group acts on these units; the first reason stays."""
        for part in self.parts:
            part.root().ended = part.root().ended or why

    def label(self, name: str) -> None:
        """Note what the value passes through."""
        for part in self.parts:
            part.root().labels.append(name)
