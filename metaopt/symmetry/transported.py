"""Gradients along an orbit, from the gradient at one point and without the network.

Where g.w has the loss of w for all data, the gradient at g.w follows from that at w. If g
multiplies incoming matrices W and their inverse follows outgoing ones, the gradients of these are
g^-T times and followed by g^T. So the squared gradient norm along the orbit is a sum of

    ||g_r^-T X g_c^T||^2,

one X for each matrix, where r and c are the sites of its rows and its columns. Each X is first made
small, as this norm does not need all of its entries. An ascent of the norm then costs little beside
a training step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from metaopt.symmetry.action import ALL_DATA
from metaopt.symmetry.element import Element, GroupElement, Way
from metaopt.symmetry.orbit import ActingSite, Orbit
from metaopt.symmetry.site import MatrixView, named

JITTER = 1e-14
"""What is added to the diagonal of a Gram matrix before it is factored, relative to its mean."""


def follows_by_transport(orbit: Orbit) -> bool:
    """Return whether gradients everywhere on an orbit follow from those at one point.

    Args:
        orbit: the orbit.
    """
    return bool(orbit.acting) and all(
        action.linear and action.max_samples(site) == ALL_DATA for site, action in orbit.acting
    )


class _Place(NamedTuple):
    """Where a site's T is: in which element of a step, and which part of it if it is diagonal."""

    element: int
    part: slice | None

    def of(self, group: Sequence[GroupElement], lead: torch.Size) -> GroupElement:
        """Return g of the site, from that of each element; ``lead`` splits scales of units."""
        element = group[self.element]
        if self.part is None:
            return element
        g, inverse = (t[self.part].reshape(*lead, -1) for t in (element.g, element.inverse))
        return GroupElement(g, inverse, diagonal=True)


class _Use(NamedTuple):
    """A matrix of a site, and whether its columns are the site's units, or its rows."""

    place: _Place
    view: MatrixView
    by_columns: bool

    @property
    def units(self) -> tuple[int, ...]:
        """The dimensions of the view's shape that count heads and units, in order."""
        return (*self.view.heads, *(self.view.columns if self.by_columns else self.view.rows))


class _Block(NamedTuple):
    """A small gradient X, or its squared entries, float64, and the sites of its rows and columns.

    It has leading dimensions where a group of rows belongs to a group of columns alone.
    """

    matrix: Tensor
    rows: _Place | None
    columns: _Place | None

    @property
    def scaled(self) -> bool:
        """Whether sites of positive scales alone move it."""
        return not any(place and place.part is None for place in (self.rows, self.columns))

    def factors(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return what squared entries of rows and of columns are multiplied by.

        Args:
            t: the scales of units of all sites, from the start on.
        """
        lead, ends = self.matrix.shape[:-2], self.matrix.shape[-2:]
        left, right = (
            t.new_ones(end) if place is None else (sign * t[place.part]).exp().reshape(*lead, end)
            for place, sign, end in zip((self.rows, self.columns), (-2.0, 2.0), ends, strict=True)
        )
        return left, right


@dataclass(frozen=True)
class Blocks:
    """The gradients of an orbit of linear actions, as small matrices.

    Scales of units of all sites are one diagonal element here, which comes first. The state on an
    orbit is the sum of all its T, if there is one, and X of each block that GL moves.

    Attributes:
        identity: T = 0 of the elements that move the state.
        places: where each site of the orbit has its T.
        shapes: of T of each site.
        squares: squared entries at the start of the blocks that are scaled alone.
        others: the other blocks at the start.
        rest: the squared norm of what no site moves, float64.
        acting: the sites with their actions, in the order of ``places``.
    """

    identity: list[Element]
    places: list[_Place]
    shapes: list[torch.Size]
    squares: list[_Block]
    others: list[_Block]
    rest: Tensor
    acting: Sequence[ActingSite] = ()

    @property
    def _scales(self) -> int:
        """How many tensors of a state are T of scales of units: 1, or 0 if there is none."""
        return int(self.identity[0].diagonal)

    @property
    def diagonal(self) -> bool:
        """Whether all sites have scales of units."""
        return all(element.diagonal for element in self.identity)

    def start(self) -> list[Tensor]:
        """Return the state at the start."""
        zeros = [element.values for element in self.identity[: self._scales]]
        return [*zeros, *(block.matrix for block in self.others)]

    def moved(self, state: Sequence[Tensor], elements: Sequence[Element]) -> list[Tensor]:
        """Return the state after a move by exp(T).

        Args:
            state: the state before.
            elements: T, as in ``identity``.
        """
        group = [element.exponential() for element in elements]
        reached = [t + e.values for t, e in zip(state[: self._scales], elements, strict=False)]
        for (_, rows, columns), x in zip(self.others, state[self._scales :], strict=True):
            x = x if rows is None else rows.of(group, x.shape[:-2]).dual_times(x)
            x = x if columns is None else columns.of(group, x.shape[:-2]).dual_after(x)
            reached.append(x)
        return reached

    def squared_norm(self, state: Sequence[Tensor]) -> Tensor:
        """Return the squared norm of the gradients, of all that were given.

        Args:
            state: where.
        """
        total = self.rest
        for block in self.squares:
            left, right = block.factors(state[0])
            total = total + (left * _times(block.matrix, right)).sum()
        for x in state[self._scales :]:
            total = total + x.square().sum()
        return total

    def pull_back(self, state: Sequence[Tensor]) -> list[Element]:
        """Return the gradient of the squared norm with respect to T, at T = 0.

        Args:
            state: where.
        """
        values = [torch.zeros_like(element.values) for element in self.identity]
        for block in self.squares:
            left, right = block.factors(state[0])
            for place, own, m, other, sign in (
                (block.rows, left, block.matrix, right, -2.0),
                (block.columns, right, block.matrix.mT, left, 2.0),
            ):
                if place is not None:
                    values[0][place.part] += sign * (own * _times(m, other)).flatten()
        for (_, rows, columns), x in zip(self.others, state[self._scales :], strict=True):
            for place, m, sign in ((rows, x, -2.0), (columns, x.mT, 2.0)):
                if place is None:
                    continue
                if place.part is None:
                    values[place.element] += sign * (m @ m.mT)
                else:
                    values[0][place.part] += sign * m.square().sum(dim=-1).flatten()
        for place, (site, action) in zip(self.places, self.acting, strict=True):
            if place.part is None:
                values[place.element] = action.project(values[place.element], site)
        return [e.with_values(v) for e, v in zip(self.identity, values, strict=True)]

    def of_sites(self, elements: Sequence[Element]) -> list[Element]:
        """Return T of each site of the orbit, from elements as in ``identity``."""
        found = []
        for place, shape in zip(self.places, self.shapes, strict=True):
            element = elements[place.element]
            values = element.values if place.part is None else element.values[place.part]
            found.append(element.with_values(values.reshape(shape)))
        return found


def gradient_blocks(orbit: Orbit, gradients: Sequence[Tensor]) -> Blocks | None:
    """Return the gradients of an orbit as small matrices.

    For scales of units, the entries of a unit, or of a pair of units, become one: their norm. For
    GL, a matrix that belongs to one site alone becomes a square one of the same Gram matrix.

    Args:
        orbit: an orbit of which :func:`follows_by_transport` holds.
        gradients: one for each parameter, in order, without dimensions that count tasks.

    Returns:
        None if a gradient is not finite, or if sites share parts of a parameter in another way than
        as the rows and the columns of one matrix.
    """
    zeros = orbit.identity(gradients)
    scales = [zero.values.flatten() for zero in zeros if zero.diagonal]
    identity = [Element(torch.cat(scales), diagonal=True)] if scales else []
    places, offset = [], 0
    for zero in zeros:
        if zero.diagonal:
            places.append(_Place(0, slice(offset, offset + zero.values.numel())))
            offset += zero.values.numel()
        else:
            places.append(_Place(len(identity), None))
            identity.append(zero)
    given = named(orbit.names, (gradient.detach() for gradient in gradients))
    blocks: list[_Block] = []
    for name, uses in _uses(orbit, places).items():
        own = _blocks_of(given[name], uses)
        if own is None:
            return None
        blocks += own
    total = torch.stack([_norm(gradient).square() for gradient in given.values()]).sum()
    squared = [block._replace(matrix=block.matrix.square()) for block in blocks]
    rest = total - torch.stack([block.matrix.sum() for block in squared]).sum()
    if not rest.isfinite():
        return None
    squares = _joined([block for block in squared if block.scaled], offset)
    others = [block for block in blocks if not block.scaled]
    shapes = [zero.values.shape for zero in zeros]
    return Blocks(identity, places, shapes, squares, others, rest, orbit.acting)


def _uses(orbit: Orbit, places: Sequence[_Place]) -> dict[str, list[_Use]]:
    """Return which sites move a parameter, by its name."""
    uses: dict[str, list[_Use]] = {}
    for place, (site, _) in zip(places, orbit.acting, strict=True):
        made = [part for view in site.incoming for part in (view, view.bias) if part is not None]
        for view in made:
            uses.setdefault(view.parameter, []).append(_Use(place, view, False))
        for view in site.outgoing:
            uses.setdefault(view.parameter, []).append(_Use(place, view, True))
    return uses


def _blocks_of(gradient: Tensor, uses: Sequence[_Use]) -> list[_Block] | None:
    """Return the blocks of a parameter's gradient, one for each part that sites move."""
    parts: dict[object, list[_Use]] = {}
    for use in uses:
        parts.setdefault((use.view.at, use.view.narrow), []).append(use)
    fixed = {(use.view.shape, tuple(dimension for dimension, _ in use.view.at)) for use in uses}
    cut = any(use.view.narrow for use in uses)
    if len(parts) > 1 and (len(fixed) > 1 or cut):
        return None  # they may overlap
    blocks = [_block(gradient, part) for part in parts.values()]
    found = [block for block in blocks if block is not None]
    return found if len(found) == len(blocks) else None


def _block(gradient: Tensor, uses: Sequence[_Use]) -> _Block | None:
    """Return what the uses of one part of a gradient need of it; None if that is unknown."""
    rows = [use.place for use in uses if not use.by_columns]
    columns = [use.place for use in uses if use.by_columns]
    if len(rows) > 1 or len(columns) > 1:
        return None
    diagonal = all(use.place.part is not None for use in uses)
    plain = all(use.view.shape is None and use.view.columns for use in uses)
    if diagonal and not uses[0].view.at and not uses[0].view.narrow:
        matrix = _norms(gradient, uses)
    elif len(uses) == 1:
        matrix = _of_one_site(uses[0].view.read({uses[0].view.parameter: gradient}), uses[0])
    else:
        matrix = gradient.double() if plain else None
    sides = [places[0] if places else None for places in (rows, columns)]
    return None if matrix is None else _Block(matrix, *sides)


def _norm(tensor: Tensor, dims: Sequence[int] | None = None) -> Tensor:
    """Return the norm over some dimensions, which stay with one entry, or over all; float64."""
    wide = torch.promote_types(tensor.dtype, torch.float32)
    keep = dims is not None
    norm: Tensor = torch.linalg.vector_norm(tensor, dim=dims, keepdim=keep, dtype=wide)
    return norm.double()


def _norms(gradient: Tensor, uses: Sequence[_Use]) -> Tensor | None:
    """Return the norm for each pair (unit of the rows, unit of the columns), as a matrix.

    If the two belong together in groups, as in a grouped convolution, there is a matrix a group.
    """
    shapes = [use.view.shape or tuple(gradient.shape) for use in uses]
    cuts = sorted({math.prod(shape[place:]) for shape in shapes for place in range(len(shape) + 1)})
    if 0 in cuts or any(high % low for low, high in pairwise(cuts)):
        return None
    below = cuts[-2::-1]  # of the coarsest shape that splits all others: entries below a dimension
    shape = [high // low for low, high in pairwise(cuts)][::-1]
    sides: list[list[int]] = [[], []]
    for use, own in zip(uses, shapes, strict=True):
        for dimension in use.units:
            low, high = math.prod(own[dimension + 1 :]), math.prod(own[dimension:])
            sides[use.by_columns] += [p for p, cut in enumerate(below) if low <= cut < high]
    lead = [p for p, q in zip(*sides, strict=False) if p == q]
    rows, columns = (side[len(lead) :] for side in sides)
    order = [*lead, *rows, *columns]
    if sides[0][: len(lead)] != lead or len(set(order)) < len(order):
        return None
    others = [place for place in range(len(shape)) if place not in order]
    split = gradient.reshape(shape)
    norms = _norm(split, others) if others else split.double()
    sizes = [shape[place] for place in lead], math.prod(shape[place] for place in rows)
    return norms.permute(*order, *others).reshape(*sizes[0], sizes[1], -1)


def _of_one_site(matrix: Tensor, use: _Use) -> Tensor:
    """Return a matrix for which the site has the same squared norm, ``(*heads, rows, columns)``."""
    along = -2 if use.by_columns else -1
    if use.place.part is not None:
        norms = _norm(matrix, (along,)).flatten()
        return norms[None] if use.by_columns else norms[:, None]
    units = matrix.double().mT if use.by_columns else matrix.double()
    if units.shape[-1] > units.shape[-2]:
        gram = units @ units.mT
        mean = gram.diagonal(dim1=-2, dim2=-1).mean(dim=-1, keepdim=True)
        added = (JITTER * mean).clamp(min=torch.finfo(torch.float64).tiny)
        shifted = gram + torch.diag_embed(added.expand(gram.shape[:-1]))
        units, failed = torch.linalg.cholesky_ex(shifted)
        units = torch.where(failed[..., None, None] > 0, math.nan, units)
    return units.mT if use.by_columns else units


def _joined(blocks: Sequence[_Block], scales: int) -> list[_Block]:
    """Join all blocks that one site alone scales into two, of the rows and of the columns.

    Args:
        blocks: squared entries.
        scales: how many scales of units all sites have.
    """
    if not blocks:
        return []
    sums = blocks[0].matrix.new_zeros(2, scales)
    kept = []
    for block in blocks:
        if block.rows and block.columns:
            kept.append(block)
        elif (place := block.rows or block.columns) is not None:
            sums[int(block.rows is None), place.part] += block.matrix.flatten()
    everything = _Place(0, slice(0, scales))
    rows, columns = sums
    return [*kept, _Block(rows[:, None], everything, None), _Block(columns[None], None, everything)]


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def joined(orbit: Orbit, steps: Sequence[Sequence[Element]]) -> Sequence[Sequence[Element]]:
    """Return several steps along an orbit as one, if all actions are linear; else the steps.

    Args:
        orbit: the orbit.
        steps: for each step, T of each site.
    """
    if len(steps) < 2 or not all(action.linear for _, action in orbit.acting):
        return steps
    return [[Way.of(site) for site in zip(*steps, strict=True)]]
