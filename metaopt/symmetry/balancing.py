"""Balance: the point of an orbit where what makes the features weighs as much as what uses them.

Between incoming matrices A (g A after a move) and outgoing matrices B (B g^-1) the sum of squares
||g A||^2 + ||B g^-1||^2 is smallest where B^T B = A A^T. With P = g^T g it is P A A^T P = B^T B, so
P is the geometric mean of (A A^T)^-1 and B^T B. Of all g with this P, the symmetric root is the
nearest to the identity. A turn after it leaves the sums of squares, so it may make both sides
diagonal: the features become singular directions of the product, the largest first. For scales of
units this is t = 1/2 log(||b|| / ||a||), unit by unit.

Source: the balance of Du, Hu and Lee (2018) and of ENorm (Stock et al., 2019); the closed form for
GL is the geometric mean of positive definite matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from metaopt.checks import check_positive, check_whole
from metaopt.errors import UserError, shown, unknown
from metaopt.symmetry.closed_form import linear_move
from metaopt.symmetry.element import MAX_DIRECTION, Element, Turn
from metaopt.symmetry.finders.norms import GAINS
from metaopt.symmetry.finders.stream import STREAM
from metaopt.symmetry.objectives import LossFunction
from metaopt.symmetry.orbit import ActingSite, Orbit
from metaopt.symmetry.search import Search, SearchResult
from metaopt.symmetry.site import Site, named
from metaopt.symmetry.symmetries_found import Symmetries

BASES = ("nearest", "singular")
"""Which of the balanced points, that are turns of one another, a balance goes to."""

SETTLED = 1e-3
"""The largest entry of T for which a further pass over the sites is not made."""


@final
@dataclass(frozen=True)
class Balance:
    """A search that goes to the balanced point in closed form; it needs no loss and no data.

    Sites of rotations alone are left as they are, since a rotation keeps the sum of squares. In the
    singular basis a residual stream under norms of the root mean square is turned; one under
    LayerNorm, whose rotations fix the vector of ones, is not.

    Attributes:
        passes: the most passes over all sites. Sites that share a matrix depend on one another, so
            that one pass does not end there.
        strength: the part of the way to go: 1 for all of it, less for a damped balance.
        limit: the largest change of the logarithm of a scale, of a unit or along a direction of a
            site. Where one of the sides is nearly 0 along a direction, as in an adapter at its
            start, this bounds the move.
        basis: "nearest" for the nearest balanced point; "singular" to turn the features after that,
            so that A A^T and B^T B are diagonal, the largest entries first. Then each feature is a
            singular direction of B A. A residual stream of all rotations is turned so that the sum
            of both is diagonal. Scales of units and of planes are not turned.
        ridge: what is added to the diagonals of A A^T and B^T B, as a part of their mean.
    """

    passes: int = 1
    strength: float = 1.0
    limit: float = 2.0
    ridge: float = 1e-6
    basis: str = "nearest"
    needs_loss: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_whole("passes", self.passes, 1)
        check_positive("ridge", self.ridge, type(self).ridge)
        if self.basis not in BASES:
            raise UserError(unknown("a basis", self.basis, BASES))
        for name, most in (("strength", 1.0), ("limit", MAX_DIRECTION)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value <= most:
                raise UserError(
                    f"expected a {name} above 0 and up to {most:g}, got {shown(value)}: leave it "
                    f"out for {getattr(type(self), name):g}"
                )

    def __call__(
        self, orbit: Orbit, parameters: Sequence[Tensor], loss: LossFunction | None = None
    ) -> SearchResult:
        """Return the balanced point of an orbit.

        Args:
            orbit: the orbit.
            parameters: where the search starts, in order; they are not changed.
            loss: it is not evaluated.
        """
        for site, action in orbit.acting:
            if not action.linear or action.uses_inputs:
                raise UserError(
                    f"expected groups that keep all data for a balance, got "
                    f"{type(action).__name__} at {site.name}: leave the action out"
                )
        with torch.no_grad():
            weights = dict(named(orbit.names, parameters))
            steps: list[list[Element]] = []
            for _ in range(self.passes):
                elements = orbit.identity([weights[name] for name in orbit.names])
                largest = 0.0
                for places in _batches(orbit.acting, elements):
                    sites = [orbit.acting[place].site for place in places]
                    found = self._elements(sites, weights, elements[places[0]])
                    for place, element in zip(places, found, strict=True):
                        site = orbit.acting[place].site
                        weights |= linear_move(element.exponential(), site, weights)
                        elements[place] = element
                steps.append(elements)
                if self.passes > 1:
                    largest = max(float(e.values.abs().max()) for e in elements)
                if largest <= SETTLED:
                    break
            if self.basis == "singular":
                steps.append(_turns(orbit, weights))
            end = [weights[name] for name in orbit.names]
            finite = torch.stack([_norm(value).isfinite() for value in end]).all()
            if not finite:  # such weights came in
                end = list(parameters)
        return SearchResult(end, ~finite, steps)

    def _elements(
        self, sites: Sequence[Site], weights: Mapping[str, Tensor], zero: Element
    ) -> list[Element]:
        """Return T of several sites of one form, computed together; ``zero`` is T = 0 of each."""
        first = sites[0]
        if zero.diagonal:
            made, used = (
                torch.stack([_squares(site, weights, side) for site in sites]) for side in (0, 1)
            )
            return [Element(t, diagonal=True) for t in self._scales(made, used)]
        if first.group.startswith("orthogonal"):
            return [zero for _ in sites]
        made, used = (
            torch.stack([_gram(site, weights, side) for site in sites]) for side in (0, 1)
        )
        if first.planes:
            return [Element(t) for t in self._planes(made, used, first.planes)]
        t, basis = self._mean(made, used)
        return [Element(values, own) for values, own in zip(t, basis, strict=True)]

    def _scales(self, made: Tensor, used: Tensor) -> Tensor:
        """Return t = 1/4 log(||b||^2 / ||a||^2), 0 where one of the two is 0."""
        live = (made > 0) & (used > 0)
        ratio = torch.where(live, used, 1.0) / torch.where(live, made, 1.0)
        return (self.strength * ratio.log() / 4).clamp(-self.limit, self.limit)

    def _mean(self, made: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
        """Return log(P) / 2 as eigenvalues and a basis, where P made P = used."""
        live = (_trace(made) > 0) & (_trace(used) > 0)
        identity = torch.eye(made.shape[-1], dtype=made.dtype, device=made.device)
        made, used = (
            torch.where(
                live[..., None, None], m + self.ridge * _mean_of_diagonal(m) * identity, identity
            )
            for m in (made, used)
        )
        factor = torch.linalg.cholesky(made)
        values, vectors = torch.linalg.eigh(factor.mT @ used @ factor)
        root = (vectors * values.clamp(min=0).sqrt().unsqueeze(-2)) @ vectors.mT
        half = torch.linalg.solve_triangular(factor.mT, root, upper=True)
        p = torch.linalg.solve_triangular(factor, half, upper=False, left=False)
        values, basis = torch.linalg.eigh((p + p.mT) / 2)
        tiny = torch.finfo(values.dtype).tiny
        t = self.strength * values.clamp(min=tiny).log() / 2
        t = t.clamp(-self.limit, self.limit)
        return torch.where(live.unsqueeze(-1), t, 0.0), basis

    def _planes(self, made: Tensor, used: Tensor, planes: Sequence[tuple[int, int]]) -> Tensor:
        """Return T that scales each plane, and balances the units that are in none."""
        first, second = torch.tensor(planes, device=made.device).T
        t = self._scales(_of_planes(made, planes), _of_planes(used, planes))
        element = torch.zeros_like(made)
        element[..., first, first] = t
        element[..., second, second] = t
        free = torch.ones(made.shape[-1], dtype=torch.bool, device=made.device)
        free[first] = free[second] = False
        rest = free.nonzero().flatten()
        if len(rest):
            rows, columns = rest[:, None], rest[None, :]
            values, basis = self._mean(made[..., rows, columns], used[..., rows, columns])
            element[..., rows, columns] = (basis * values.unsqueeze(-2)) @ basis.mT
        return element


def _turns(orbit: Orbit, weights: dict[str, Tensor]) -> list[Element]:
    """Turn the features of sites to the eigenvectors of A A^T + B^T B, in ``weights``.

    These are the sites of GL, and the rotations of a residual stream. The signs are those nearest
    to no turn. A turn at one site keeps the products at the others.
    """
    elements = orbit.identity([weights[name] for name in orbit.names])
    for places in _batches(orbit.acting, elements):
        sites = [orbit.acting[place].site for place in places]
        if not orbit.acting[places[0]].action.turns:
            continue
        gram = torch.stack([_gram(s, weights, 0) + _gram(s, weights, 1) for s in sites])
        sound = _trace(gram).isfinite()[..., None, None]
        identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        vectors = torch.linalg.eigh(torch.where(sound, gram, identity)).eigenvectors.flip(-1)
        signs = torch.where(vectors.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)
        turns = (vectors * signs.unsqueeze(-2)).mT
        for place, site, turn in zip(places, sites, turns, strict=True):
            elements[place] = Turn.of(turn)
            weights |= linear_move(elements[place].exponential(), site, weights)
    return elements


SEARCHES: dict[str, Callable[[], Search]] = {"balance": Balance}
"""Searches that ``TeleportingOptimizer(search=...)`` knows by name."""


def balanced(sites: Symmetries) -> Symmetries:
    """Return the sites that a balance moves by default: all but gains of norms and streams.

    Args:
        sites: all sites of a network.
    """
    return replace(sites, sites=tuple(s for s in sites if s.kind not in (GAINS, STREAM)))


def imbalance(site: Site, weights: Mapping[str, Tensor]) -> float:
    """Return how far a site is from balance: ||B^T B - A A^T|| over the sum of their norms.

    Of scales of units the diagonals alone are compared, and of planes the sums of their squares.

    Args:
        site: the site.
        weights: tensors by name.
    """
    weights = {name: weights[name].detach() for name in site.parameters}
    diagonal = site.group in ("positive", "nonzero")
    measure = _squares if diagonal else _gram
    made, used = (measure(site, weights, side) for side in (0, 1))
    if site.planes:
        made, used = (_of_planes(gram, site.planes) for gram in (made, used))
    total = float(made.norm() + used.norm())
    return float((used - made).norm()) / total if total else 0.0


def _batches(acting: Sequence[ActingSite], zeros: Sequence[Element]) -> Iterator[list[int]]:
    """Yield the places of sites of one form that share no parameter, all in order."""
    waiting: dict[object, list[int]] = {}
    taken: dict[object, set[str]] = {}
    for place, ((site, _), zero) in enumerate(zip(acting, zeros, strict=True)):
        form = site.group, zero.diagonal, zero.values.shape, site.planes
        names = set(site.parameters)
        if taken.get(form, set()) & names:
            yield waiting.pop(form)
            taken.pop(form)
        waiting.setdefault(form, []).append(place)
        taken.setdefault(form, set()).update(names)
    yield from waiting.values()


def _matrices(site: Site, weights: Mapping[str, Tensor], side: int) -> Iterator[Tensor]:
    """Yield the matrices of a side in float64, units in rows; those of the incoming with biases."""
    if side == 0:
        for view in site.incoming:
            yield view.read_augmented(weights).double()
    else:
        for view in site.outgoing:
            yield view.read(weights).double().mT


def _gram(site: Site, weights: Mapping[str, Tensor], side: int) -> Tensor:
    """Return A A^T, or B^T B, ``(*heads, k, k)`` in float64."""
    return torch.stack([m @ m.mT for m in _matrices(site, weights, side)]).sum(dim=0)


def _squares(site: Site, weights: Mapping[str, Tensor], side: int) -> Tensor:
    """Return the squared norms of the units on a side, ``(*heads, k)`` in float64."""
    total: Tensor | None = None
    for view in site.incoming if side == 0 else site.outgoing:
        parts = (view, view.bias) if side == 0 else (view,)
        for part in parts:
            if part is not None:
                norms = _norm(part.read(weights), -1 if side == 0 else -2).square()
                total = norms if total is None else total + norms
    assert total is not None
    return total


def _of_planes(gram: Tensor, planes: Sequence[tuple[int, int]]) -> Tensor:
    """Return the squared norm of each plane, ``(*heads, planes)``."""
    return gram.diagonal(dim1=-2, dim2=-1)[..., torch.tensor(planes, device=gram.device)].sum(-1)


def _norm(tensor: Tensor, dim: int | None = None) -> Tensor:
    """Return the norm along a dimension, or of all, in float64 and without a copy."""
    norm: Tensor = torch.linalg.vector_norm(tensor, dim=dim, dtype=torch.float64)
    return norm


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(dim=-1)


def _mean_of_diagonal(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[..., None, None]
