"""A move at the GL sites of a stack: balance, then log g along each direction of the balanced pair.

After a balance both Gram matrices of a site are R diag(s) R^T: s are the singular values of the
product of the pair, and the columns of R its singular basis among the k features. A proposal says t
for each of these directions, and g = R diag(exp t) R^T acts. At t = 0 this is the balance by hand.
Averages of gradients go along, first moments exactly, second moments by squared entries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, final

import torch
from torch import Tensor

from metaopt.symmetry import Balance, Element, Orbit, Site
from metaopt.symmetry.closed_form import linear_move, linear_transport

Tensors = dict[str, Tensor]
FEATURES = 11
HIDDEN = 4
BOUND = 2.0
"""The largest |t| of a learned move."""

MOST = 3.0  # of a feature
TINY = 1e-30


class Averages(NamedTuple):
    """Gradients, and AdamW's averages of them and of their squares, by name."""

    gradients: Tensors
    first: Tensors
    second: Tensors

    def along(self, element: Element, site: Site) -> Averages:
        """Return them after a move of the weights.

        Args:
            element: T of the move.
            site: where.
        """
        g = element.exponential()
        moved = [linear_transport(g, site, own, squares) for own, squares in self._kinds()]
        return Averages(*(own | new for (own, _), new in zip(self._kinds(), moved, strict=True)))

    def _kinds(self) -> list[tuple[Tensors, bool]]:
        return [(self.gradients, False), (self.first, False), (self.second, True)]


@dataclass(frozen=True)
class Moment:
    """Where in a training a move is made.

    Attributes:
        progress: the part of the steps that are done.
        rate: of AdamW.
    """

    progress: float
    rate: float


class Proposal(Protocol):
    """What says log g along each direction of a site."""

    def __call__(self, features: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
        """Return t, ``(..., k)``, and the basis that it is along, ``(..., k, k)``.

        Args:
            features: ``(..., k, FEATURES)``.
            basis: the singular basis, ``(..., k, k)``, a direction a column.
        """


def moved(
    orbit: Orbit, weights: Tensors, averages: Averages, propose: Proposal, moment: Moment
) -> tuple[Tensors, Averages]:
    """Return weights and averages after a move at all sites.

    Args:
        orbit: the sites, of which none shares a part of a parameter with another.
        weights: by name, ``(copies, ...)``.
        averages: of gradients.
        propose: says t.
        moment: where in the training.
    """
    (balance,) = Balance()(orbit, [weights[name] for name in orbit.names]).elements
    for (site, _), element in zip(orbit.acting, balance, strict=True):
        own = weights | linear_move(element.exponential(), site, weights)
        along = averages.along(element, site)
        made, used = _gram(site, own, 0), _gram(site, own, 1)
        _, basis = torch.linalg.eigh(made / _mean(made) + used / _mean(used))
        features = _features(site, own, along, basis, element, moment)
        t, basis = propose(features, basis)
        step = Element(t.clamp(-BOUND, BOUND), basis)
        weights = own | linear_move(step.exponential(), site, own)
        averages = along.along(step, site)
    return weights, averages


def _matrices(site: Site, tensors: Mapping[str, Tensor], side: int) -> list[Tensor]:
    """Return the matrices of a side in float64, with the k features in rows."""
    if side == 0:
        return [view.read_augmented(tensors).double() for view in site.incoming]
    outgoing = site.without_outgoing_bias().outgoing
    return [view.read(tensors).double().mT for view in outgoing]


def _gram(site: Site, weights: Mapping[str, Tensor], side: int) -> Tensor:
    return torch.stack([m @ m.mT for m in _matrices(site, weights, side)]).sum(dim=0)


def _mean(gram: Tensor) -> Tensor:
    return gram.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[..., None, None].clamp(min=TINY)


def _energies(site: Site, tensors: Tensors, basis: Tensor, squares: bool = False) -> list[Tensor]:
    """Return the mean square along each direction, ``(..., k)``, of both sides.

    Args:
        site: the site.
        tensors: weights, gradients or averages, by name.
        basis: the directions.
        squares: whether the tensors are averages of squares already.
    """
    found = []
    for side in (0, 1):
        matrices = _matrices(site, tensors, side)
        columns = sum(m.shape[-1] for m in matrices)
        total = [
            (basis.square().mT @ m if squares else (basis.mT @ m).square()).sum(dim=-1)
            for m in matrices
        ]
        found.append((torch.stack(total).sum(dim=0) / columns).clamp(min=TINY))
    return found


def _features(
    site: Site, weights: Tensors, averages: Averages, basis: Tensor, balance: Element,
    moment: Moment,
) -> Tensor:  # fmt: skip
    """Return what a proposal sees of each direction, ``(..., k, FEATURES)``; none has a unit."""
    a, b = _energies(site, weights, basis)
    gradient_a, gradient_b = _energies(site, averages.gradients, basis)
    first_a, first_b = _energies(site, averages.first, basis)
    second_a, second_b = _energies(site, averages.second, basis, squares=True)
    before = (basis * (balance.dense() @ basis)).sum(dim=-2)  # of the balance, along each direction
    size, slope = (a.log() + b.log()) / 4, (gradient_a + gradient_b).log() / 2
    k = size.shape[-1]
    rank = torch.linspace(-1, 1, k, dtype=size.dtype).expand_as(size)
    features = [
        size - size.mean(dim=-1, keepdim=True),
        (size - torch.tensor(moment.rate, dtype=size.dtype).log()) / 2 - 1,
        before,
        (gradient_a.log() - gradient_b.log()) / 2,
        slope - slope.mean(dim=-1, keepdim=True),
        (first_a.log() - second_a.log()) / 2 + 1,
        (first_b.log() - second_b.log()) / 2 + 1,
        (second_a.log() - second_b.log()) / 2,
        rank,
        torch.full_like(size, 2 * moment.progress - 1),
        torch.full_like(size, k / 8 - 1),
    ]
    return torch.stack(features, dim=-1).nan_to_num().clamp(-MOST, MOST)


@final
@dataclass(frozen=True)
class Network:
    """m2: a network with one layer of tanh units, the same for all directions.

    Attributes:
        theta: its weights, ``(size,)``, or ``(copies, size)`` with those of each copy.
        hidden: units.
    """

    theta: Tensor
    hidden: int = HIDDEN

    @staticmethod
    def size(hidden: int = HIDDEN) -> int:
        """Return how many weights there are.

        Args:
            hidden: units.
        """
        return hidden * (FEATURES + 1) + hidden + 1

    def __call__(self, features: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
        """Return t within :data:`BOUND`, along the singular basis. See :class:`Proposal`."""
        theta = self.theta.to(features.dtype).expand(features.shape[0], -1)
        ones = [1] * (features.dim() - 2)
        h = self.hidden
        inner, shift, outer, last = torch.split(theta, [h * FEATURES, h, h, 1], dim=-1)
        units = torch.einsum("n...f,nhf->n...h", features, inner.reshape(-1, h, FEATURES))
        units = torch.tanh(units + shift.reshape(-1, *ones, h))
        t = torch.einsum("n...h,nh->n...", units, outer) + last.reshape(-1, *ones)
        return BOUND * torch.tanh(t / BOUND), basis


@final
@dataclass(frozen=True)
class Constant:
    """The same t along each direction; 0 is the balance by hand.

    Attributes:
        t: the number.
    """

    t: float = 0.0

    def __call__(self, features: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
        """Return t along the singular basis. See :class:`Proposal`."""
        return torch.full_like(features[..., 0], self.t), basis


@final
@dataclass(frozen=True)
class Random:
    """Normal t along random directions.

    Attributes:
        size: the root mean square of t.
        generator: draws them.
    """

    size: float
    generator: torch.Generator

    def __call__(self, features: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
        """Return t along a random basis. See :class:`Proposal`."""
        shape = features.shape[:-1]
        t = torch.randn(shape, dtype=features.dtype, generator=self.generator)
        drawn = torch.randn(basis.shape, dtype=basis.dtype, generator=self.generator)
        return self.size * t, torch.linalg.qr(drawn)[0]


@final
@dataclass(frozen=True)
class Shuffled:
    """A network that sees the features of other directions, of the same site of any copy.

    Attributes:
        network: the network, with the same weights for all copies.
        generator: shuffles.
    """

    network: Network
    generator: torch.Generator

    def __call__(self, features: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
        """Return t of shuffled features. See :class:`Proposal`."""
        rows = features.flatten(0, -2)
        order = torch.randperm(len(rows), generator=self.generator)
        return self.network(rows[order].reshape(features.shape), basis)


@final
@dataclass(frozen=True)
class Several:
    """Proposals of copies that stand one after the other, an equal number for each.

    Attributes:
        proposals: in the order of the copies.
    """

    proposals: Sequence[Proposal]

    def __call__(self, features: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
        """Return what each proposal says of its own copies. See :class:`Proposal`."""
        count = len(self.proposals)
        parts = zip(self.proposals, features.chunk(count), basis.chunk(count), strict=True)
        t, bases = zip(*(propose(own, along) for propose, own, along in parts), strict=True)
        return torch.cat(t), torch.cat(bases)


@final
class Watched:
    """A proposal whose t are noted.

    Args:
        propose: the proposal.
    """

    def __init__(self, propose: Proposal) -> None:
        self.propose = propose
        self.found: list[Tensor] = []

    def __call__(self, features: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the proposal says. See :class:`Proposal`."""
        t, basis = self.propose(features, basis)
        self.found.append(t)
        return t, basis
