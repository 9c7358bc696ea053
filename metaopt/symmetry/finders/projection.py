"""Projections: the layers that make or use the features of heads, as views of their parameters."""

from __future__ import annotations

from dataclasses import dataclass, replace

from metaopt.errors import UserError
from metaopt.symmetry.site import MatrixView


@dataclass(frozen=True)
class Projection:
    """One dimension of a weight that holds the features of heads, and the bias beside it.

    The dimension is split into ``shape``. So a fused weight, of queries, keys and values say, is
    three projections of one parameter.

    Attributes:
        layer: the name of the layer, for people.
        weight: the name of the weight, a matrix.
        bias: the name of the bias of the features; None if there is none.
        features_last: whether the features are the last dimension of the weight, and not the first.
        shape: what the dimension of the features is split into.
        heads: the place in ``shape`` that counts groups of heads, with one g each; None where
            there is one g alone.
        units: the place in ``shape`` that counts the features of a head.
        at: pairs (place in ``shape``, index) that stay fixed.
        narrow: a part (start, length) of the dimension that is cut out first.
    """

    layer: str
    weight: str
    bias: str | None
    features_last: bool
    shape: tuple[int, ...]
    heads: int | None
    units: int
    at: tuple[tuple[int, int], ...] = ()
    narrow: tuple[int, int] | None = None

    @property
    def width(self) -> int:
        """The number of features of a head."""
        return self.shape[self.units]

    @property
    def groups(self) -> int:
        """How many group elements act."""
        return 1 if self.heads is None else self.shape[self.heads]

    @property
    def _repeats(self) -> tuple[int, ...]:
        """The places in ``shape`` that count heads of one group."""
        taken = {self.heads, self.units, *(place for place, _ in self.at)}
        return tuple(place for place in range(len(self.shape)) if place not in taken)

    def rows(self, other: int) -> MatrixView:
        """Return the view whose rows are the features of a head, with the bias beside it.

        Args:
            other: the size of the other dimension of the weight.
        """
        return replace(self._view(other, True), bias=self._bias(True))

    def columns(self, other: int) -> tuple[MatrixView, ...]:
        """Return the views whose columns are the features of a head, also that of the bias.

        Args:
            other: the size of the other dimension of the weight.
        """
        bias = self._bias(False)
        return (self._view(other, False), *(() if bias is None else (bias,)))

    def _view(self, other: int, as_rows: bool) -> MatrixView:
        shift, count = int(self.features_last), len(self.shape)
        across = 0 if self.features_last else count
        shape = (other, *self.shape) if self.features_last else (*self.shape, other)
        units = (self.units + shift,)
        rest = tuple(sorted((*(place + shift for place in self._repeats), across)))
        return MatrixView(
            self.weight,
            rows=units if as_rows else rest,
            columns=rest if as_rows else units,
            shape=shape,
            at=tuple((place + shift, index) for place, index in self.at),
            heads=() if self.heads is None else (self.heads + shift,),
            narrow=None if self.narrow is None else (shift, *self.narrow),
        )

    def _bias(self, as_rows: bool) -> MatrixView | None:
        if self.bias is None:
            return None
        return MatrixView(
            self.bias,
            rows=(self.units,) if as_rows else self._repeats,
            columns=self._repeats if as_rows else (self.units,),
            shape=self.shape,
            dims=1,
            at=self.at,
            heads=() if self.heads is None else (self.heads,),
            narrow=None if self.narrow is None else (0, *self.narrow),
        )

    def grouped(self, groups: int) -> Projection:
        """Return the projection with its heads in groups that share one g.

        Args:
            groups: how many.

        Raises:
            UserError: if the heads cannot be split so.
        """
        heads = self.groups
        if heads % groups:
            raise UserError(
                f"expected {heads} heads of {self.layer} in {groups} groups, got a rest of "
                f"{heads % groups}: give the numbers of heads of queries and of keys"
            )
        if heads == groups or self.heads is None:
            return self
        place = self.heads
        shape = (*self.shape[:place], groups, heads // groups, *self.shape[place + 1 :])
        at = tuple((p + (p > place), index) for p, index in self.at)
        return replace(self, shape=shape, units=self.units + (self.units > place), at=at)
