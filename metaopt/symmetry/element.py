"""Lie algebra elements T, and the group elements g = exp(T) and g^-1 = exp(-T)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from metaopt.errors import UserError

MAX_ELEMENT = 32.0  # Frobenius norm of T, or size of a diagonal entry, that exp is made for
MAX_DIRECTION = 8.0  # of each |t_i| in a basis: exp(T) exp(-T) is off by 2e-16 e^(2 max |t_i|)
SQUARINGS = 6  # so that the series is summed at a norm of 1/2 or less

Exponential = Callable[[Tensor], tuple[Tensor, Tensor]]
"""A function from T ``(*batch, k, k)`` to (g, g^-1), each of the same shape."""


@dataclass(frozen=True)
class Element:
    """An element T of the Lie algebra of a site's group.

    T is stored dense, in an orthogonal basis, or as a diagonal. Code that uses an element need not
    know which of these forms it has.

    Attributes:
        values: the numbers that T is made of. For a dense T these are its entries ``(*batch, k,
            k)``, and for the other forms the numbers t, ``(*batch, k)``.
        basis: an orthogonal matrix V ``(*batch, k, k)`` in float64 such that T = V diag(t) V^T;
            None for the other forms.
        diagonal: whether T = diag(t), which scales rows and columns.
    """

    values: Tensor
    basis: Tensor | None = None
    diagonal: bool = False

    @property
    def batch(self) -> torch.Size:
        """The leading dimensions of T, which count tasks."""
        return self.values.shape[: -1 if self.diagonal or self.basis is not None else -2]

    @property
    def width(self) -> int:
        """The number k of features that T acts on."""
        return self.values.shape[-1]

    def map(self, function: Callable[[Tensor], Tensor]) -> Element:
        """Return the element with ``function`` applied to its values."""
        return replace(self, values=function(self.values))

    def with_values(self, values: Tensor) -> Element:
        """Return the element of the same form with other values."""
        return replace(self, values=values)

    def scaled(self, factor: Tensor | float) -> Element:
        """Return the element factor * T.

        Args:
            factor: a number, or one for each task, ``(*batch,)``.
        """
        if isinstance(factor, Tensor):
            return self.map(lambda values: per_task(factor, values) * values)
        return self.map(lambda values: factor * values)

    def dense(self) -> Tensor:
        """Return T as a matrix, ``(*batch, k, k)``."""
        if self.basis is not None:
            return _in_basis(self.values, self.basis)
        return torch.diag_embed(self.values) if self.diagonal else self.values

    def bounded(self) -> Tensor:
        """Return whether T is small enough to be exponentiated, ``(*batch,)`` bool.

        It is not where an entry is NaN.
        """
        values = self.values.detach().double()
        if self.basis is not None or self.diagonal:
            largest = MAX_ELEMENT if self.diagonal else MAX_DIRECTION
            return values.abs().amax(dim=-1) <= largest
        size: Tensor = torch.linalg.matrix_norm(values)
        return size <= MAX_ELEMENT

    def exponential(self, kind: str = "exact") -> GroupElement:
        """Return g = exp(T), with its inverse.

        Args:
            kind: a name of :data:`EXPONENTIALS`. Diagonal elements are always exact.
        """
        if self.diagonal:
            return GroupElement(self.values.exp(), (-self.values).exp(), diagonal=True)
        if kind != "exact":
            return GroupElement(*EXPONENTIALS[kind](self.dense()))
        return self._computed() if self.values.requires_grad else self._exact

    @cached_property
    def _exact(self) -> GroupElement:
        """The exponential, computed once, as the same step is often made again."""
        return self._computed()

    def _computed(self) -> GroupElement:
        if self.basis is None:
            return GroupElement(*exact(self.values))
        identity = torch.eye(self.width, dtype=self.basis.dtype, device=self.basis.device)
        # I + V diag(e^t - 1) V^T: at T = 0 that is I bit for bit.
        both = torch.expm1(torch.stack((self.values, -self.values)))
        return GroupElement(*(identity + _in_basis(both, self.basis)))


@dataclass(frozen=True)
class Way(Element):
    """Several T of one site, made one after the other: its g is the product of their g.

    Attributes:
        values: those of the last T, which stand for none of them.
        steps: the T, in order.
    """

    steps: tuple[Element, ...] = ()

    @classmethod
    def of(cls, steps: Sequence[Element]) -> Element:
        """Return the element of several steps; scales of units commute and add up.

        Args:
            steps: T of one site, in order; all are diagonal, or none is.
        """
        if steps[0].diagonal:
            return steps[0].with_values(torch.stack([own.values for own in steps]).sum(dim=0))
        return cls(steps[-1].values, steps=tuple(steps))

    def bounded(self) -> Tensor:
        """Return whether each T is small enough. See :meth:`Element.bounded`."""
        return torch.stack([step.bounded() for step in self.steps]).all(dim=0)

    def exponential(self, kind: str = "exact") -> GroupElement:
        """Return the product of all g, with its inverse. See :meth:`Element.exponential`."""
        first, *others = [step.exponential(kind) for step in self.steps]
        g, inverse = first.g, first.inverse
        for other in others:
            g, inverse = other.g @ g, inverse @ other.inverse
        return GroupElement(g, inverse)


@dataclass(frozen=True)
class Turn(Element):
    """An orthogonal g, which need not be the exponential of any T.

    Attributes:
        values: zeros ``(*batch, k)``, as a turn scales nothing.
        basis: g itself, ``(*batch, k, k)`` in float64.
    """

    @classmethod
    def of(cls, g: Tensor) -> Turn:
        """Return the turn by an orthogonal matrix, ``(*batch, k, k)``."""
        return cls(g.new_zeros(g.shape[:-1]), g)

    def scaled(self, factor: Tensor | float) -> Element:
        """Return the turn, or the one back for a factor of -1. See :meth:`Element.scaled`.

        Raises:
            UserError: for another factor: a turn has no parts.
        """
        assert self.basis is not None
        if not isinstance(factor, Tensor) and abs(factor) == 1:
            return self if factor > 0 else Turn.of(self.basis.mT)
        raise UserError(f"expected a whole turn or the one back, got {factor} of it: give 1 or -1")

    def exponential(self, kind: str = "exact") -> GroupElement:
        """Return g, with its inverse. See :meth:`Element.exponential`."""
        assert self.basis is not None
        return GroupElement(self.basis, self.basis.mT)


@dataclass(frozen=True)
class GroupElement:
    """A group element g with its inverse.

    Attributes:
        g: the element, a matrix ``(*batch, k, k)`` or a diagonal ``(*batch, k)``.
        inverse: its inverse, of the same shape.
        diagonal: whether both are diagonals.
    """

    g: Tensor
    inverse: Tensor
    diagonal: bool = False

    def times(self, matrix: Tensor) -> Tensor:
        """Return g M, for M ``(*batch, k, columns)``."""
        return self.g.unsqueeze(-1) * matrix if self.diagonal else self.g @ matrix

    def after(self, matrix: Tensor) -> Tensor:
        """Return M g^-1, for M ``(*batch, rows, k)``."""
        return matrix / self.g.unsqueeze(-2) if self.diagonal else matrix @ self.inverse

    def dual_times(self, matrix: Tensor) -> Tensor:
        """Return g^-T M, which transports gradients with respect to matrices that g multiplies."""
        if self.diagonal:
            return self.inverse.unsqueeze(-1) * matrix
        return self.inverse.mT @ matrix

    def dual_after(self, matrix: Tensor) -> Tensor:
        """Return M g^T, which transports gradients with respect to matrices that g^-1 follows."""
        return matrix / self.inverse.unsqueeze(-2) if self.diagonal else matrix @ self.g.mT

    def squared(self) -> GroupElement:
        """Return the element with squared entries, which transports averages of squares."""
        return GroupElement(self.g.square(), self.inverse.square(), self.diagonal)


def per_task(value: Tensor, like: Tensor) -> Tensor:
    """Reshape one value for each task, ``(*batch,)``, to broadcast against another tensor.

    Args:
        value: ``(*batch,)``.
        like: ``(*batch, ...)``.
    """
    return value.reshape(value.shape + (1,) * (like.dim() - value.dim()))


def choose(mask: Tensor, new: Sequence[Tensor], old: Sequence[Tensor]) -> list[Tensor]:
    """Return ``new`` for the tasks of the mask, ``(*batch,)``, and ``old`` for the others."""
    return [torch.where(per_task(mask, a), a, b) for a, b in zip(new, old, strict=True)]


def _in_basis(values: Tensor, basis: Tensor) -> Tensor:
    return (basis * values.unsqueeze(-2)) @ basis.mT


def exact(element: Tensor) -> tuple[Tensor, Tensor]:
    """Return (exp(T), exp(-T)) to the precision of float64.

    This is scaling and squaring. For several T, there are as many squarings as a Frobenius norm of
    ``MAX_ELEMENT`` needs, whatever the norm is. So no code looks at the values, and nothing waits
    for them on a GPU. exp(T) and exp(-T) share cosh and sinh / T. These are series in T^2 of degree
    6, which Paterson and Stockmeyer's scheme sums in five products; the next term is below 1e-15.
    The tests compare with ``torch.linalg.matrix_exp``, whose backward takes the exponential of a
    matrix of twice the size.

    Args:
        element: T, ``(*batch, k, k)``.
    """
    squarings = SQUARINGS
    if element.dim() == 2 and not element.requires_grad:
        _, exponent = math.frexp(2 * float(torch.linalg.vector_norm(element)))
        squarings = min(max(exponent, 0), SQUARINGS)
    a = element * 2.0**-squarings
    a2 = a @ a
    a4 = a2 @ a2
    a6 = a4 @ a2
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device).expand_as(a)
    powers = torch.stack((identity, a2, a4, a6))
    sums = (_coefficients(a.dtype, a.device) @ powers.flatten(1)).view(powers.shape)
    low, high = sums[:2], sums[2:]
    cosh, sinh_over_a = low + a6 @ high
    sinh = a @ sinh_over_a
    both = torch.stack((cosh + sinh, cosh - sinh))
    for _ in range(squarings):
        both = both @ both
    return both[0], both[1]


@lru_cache
@torch.inference_mode(False)  # what is kept must serve callers outside it too
def _coefficients(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the coefficients of cosh and sinh / T: two rows of low parts, then two of high parts.

    Each row is in (I, T^2, T^4, T^6). A series is low + T^6 high.
    """
    cosh, sinh = ([1 / math.factorial(2 * j + odd) for j in range(7)] for odd in (0, 1))
    rows = [[*cosh[:3], 0.0], [*sinh[:3], 0.0], cosh[3:], sinh[3:]]
    return torch.tensor(rows, dtype=dtype, device=device)


def first_order(element: Tensor) -> tuple[Tensor, Tensor]:
    """Return (I + T, I - T), as in the paper's released code.

    The two are inverse to each other only to first order in T.

    Args:
        element: T, ``(*batch, k, k)``.
    """
    identity = torch.eye(element.shape[-1], dtype=element.dtype, device=element.device)
    return identity + element, identity - element


EXPONENTIALS: dict[str, Exponential] = {"exact": exact, "first_order": first_order}
"""The ways to exponentiate a dense T, by name."""
