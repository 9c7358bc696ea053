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
from metaopt.symmetry.element import Element, GroupElement
from metaopt.symmetry.orbit import Orbit, OrbitPoint
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
    """A small gradient X, float64, and the sites of its rows and of its columns.

    It has leading dimensions where a group of rows belongs to a group of columns alone.
    """

    matrix: Tensor
    rows: _Place | None
    columns: _Place | None


@dataclass(frozen=True)
class Blocks:
    """The gradients of an orbit of linear actions, as small matrices.

    Scales of units of all sites are one diagonal element here, which comes first.

    Attributes:
        identity: T = 0 of the elements that move the blocks.
        places: where each site of the orbit has its T.
        shapes: of T of each site.
        blocks: the matrices at the start.
        rest: the squared norm of what no site moves, float64.
    """

    identity: list[Element]
    places: list[_Place]
    shapes: list[torch.Size]
    blocks: list[_Block]
    rest: Tensor

    @property
    def diagonal(self) -> bool:
        """Whether all sites have scales of units."""
        return all(element.diagonal for element in self.identity)

    def transport(self, matrices: Sequence[Tensor], elements: Sequence[Element]) -> list[Tensor]:
        """Return g_r^-T X g_c^T of each block.

        Args:
            matrices: X of each block.
            elements: T, as in ``identity``.
        """
        group = [element.exponential() for element in elements]
        moved = []
        for (_, rows, columns), x in zip(self.blocks, matrices, strict=True):
            x = x if rows is None else rows.of(group, x.shape[:-2]).dual_times(x)
            moved.append(x if columns is None else columns.of(group, x.shape[:-2]).dual_after(x))
        return moved

    def pull_back(self, matrices: Sequence[Tensor]) -> list[Element]:
        """Return the gradient of ``sum ||X||^2`` with respect to T at T = 0.

        Args:
            matrices: X of each block.
        """
        values = [torch.zeros_like(element.values) for element in self.identity]
        for (_, rows, columns), x in zip(self.blocks, matrices, strict=True):
            for place, m, sign in ((rows, x, -2.0), (columns, x.mT, 2.0)):
                if place is None:
                    continue
                if place.part is None:
                    values[place.element] += sign * (m @ m.mT)
                else:
                    values[place.element][place.part] += sign * m.square().sum(dim=-1).flatten()
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
    blocks = _joined(blocks, offset)
    total = torch.stack([_norm(gradient).square() for gradient in given.values()]).sum()
    rest = total - torch.stack([block.matrix.square().sum() for block in blocks]).sum()
    if not rest.isfinite():
        return None
    return Blocks(identity, places, [zero.values.shape for zero in zeros], blocks, rest)


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
    parts: dict[tuple[tuple[int, int], ...], list[_Use]] = {}
    for use in uses:
        parts.setdefault(use.view.at, []).append(use)
    fixed = {(use.view.shape, tuple(dimension for dimension, _ in use.view.at)) for use in uses}
    if len(parts) > 1 and len(fixed) > 1:
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
    if diagonal and not uses[0].view.at:
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
        blocks: the blocks.
        scales: how many scales of units all sites have.
    """
    squares = torch.zeros(2, scales, dtype=torch.float64, device=blocks[0].matrix.device)
    kept = []
    for block in blocks:
        place = block.columns or block.rows
        if (block.rows and block.columns) or place is None or place.part is None:
            kept.append(block)
        else:
            squares[int(block.rows is None), place.part] += block.matrix.square().flatten()
    if scales:
        everything, (rows, columns) = _Place(0, slice(0, scales)), squares.sqrt()
        kept.append(_Block(rows[:, None], everything, None))
        kept.append(_Block(columns[None], None, everything))
    return kept


def move_along(
    orbit: Orbit, parameters: Sequence[Tensor], steps: Sequence[Sequence[Element]]
) -> OrbitPoint:
    """Move parameters by the elements of several steps, as if one after the other.

    Scales of units commute, so those of all steps are one move.

    Args:
        orbit: an orbit of linear actions.
        parameters: where to start, in order.
        steps: for each step, T of each site.
    """
    first, *later = [list(elements) for elements in steps]
    dense = [number for number, element in enumerate(first) if not element.diagonal]
    for number, element in enumerate(first):
        if element.diagonal:
            values = [elements[number].values for elements in steps]
            first[number] = element.with_values(torch.stack(values).sum(dim=0))
    point = orbit.move(parameters, first)
    if not dense:
        return point
    rest = Orbit(orbit.names, [orbit.acting[number] for number in dense])
    for elements in later:
        moved = rest.move(point.parameters, [elements[number] for number in dense])
        point = OrbitPoint(moved.parameters, point.rejected | moved.rejected)
    return point
