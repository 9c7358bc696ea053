"""Steps of conjugate gradients towards the minimum of the damped Gauss-Newton model.

The model of all weights is <g, d> + 1/2 d^T A d with

    A = J^T H J + P + nu sum_l k_l I_l

as in :mod:`metaopt.learned.subspace`. Products with J and J^T are passes through the network, so A
is exact and never formed (Martens, 2010). The preconditioner is the Kronecker-factored curvature,
in whose bases all is computed: there it is diagonal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metaopt.learned.bases import Bases, Row
from metaopt.learned.kronecker import TINY, spread
from metaopt.learned.network_pass import Derivatives
from metaopt.learned.without_graph import without_graph
from metaopt.output_loss import OutputLoss


class System(NamedTuple):
    """The linear system A d = -g, and what approximates it, in the bases of the curvature.

    Attributes:
        along: the derivatives of the output where the step begins.
        bases: of the layers.
        loss: of the outputs.
        slope: g, ``(*batch, coefficients)``.
        curvature: of each coefficient, of that shape.
        damping: nu k_l of each coefficient.
        penalties: the curvature of penalties at each entry of the augmented weights, of each layer;
            None without any.
        moving: masks of the entries that move; None where all do.
    """

    along: Derivatives
    bases: Bases
    loss: OutputLoss
    slope: Tensor
    curvature: Tensor
    damping: Tensor
    penalties: Sequence[Tensor] | None = None
    moving: Sequence[Tensor] | None = None

    def pushed(self, d: Tensor) -> Tensor:
        """Return J d, ``(*batch, out, samples)``.

        Args:
            d: ``(*batch, coefficients)``.
        """
        return self.along.pushed(self.bases.parts(d))

    def product(self, d: Tensor, jd: Tensor, into: Row | None = None) -> Tensor:
        """Return A d.

        Args:
            d: ``(*batch, coefficients)``.
            jd: J d.
            into: that may be written to.
        """
        found, parts = self.bases.empty(d) if into is None else into
        self.along.gradients_into(parts, self.loss.product(self.along.outputs, jd))
        found.addcmul_(self.damping, d)
        if self.penalties is not None:
            found = found + self.bases.scaled(d, self.penalties)
        return self.masked(found)

    def masked(self, row: Tensor) -> Tensor:
        """Return a row, without what would move entries that stay where they are.

        Args:
            row: ``(*batch, coefficients)``.
        """
        return row if self.moving is None else self.bases.scaled(row, self.moving)


class Step(NamedTuple):
    """A step, and what it does to the outputs.

    Attributes:
        d: the step, ``(*batch, coefficients)``.
        jd: J d, without a graph.
    """

    d: Tensor
    jd: Tensor


def refined(system: System, step: Step, iterations: int) -> Step:
    """Return a step after some iterations of preconditioned conjugate gradients.

    Each lowers the damped model, whatever it begins from. A meta-gradient goes through the step as
    if what is added did not depend on it.

    Args:
        system: what is solved.
        step: what it begins from.
        iterations: how many.
    """
    if not iterations:
        return step
    added = _solved(system, Step(step.d.detach(), step.jd), iterations)
    return Step(step.d + added.d, step.jd + added.jd)


@without_graph
def _solved(system: System, step: Step, iterations: int) -> Step:
    """What is added to a step."""
    d, jd = torch.zeros_like(step.d), torch.zeros_like(step.jd)
    scale = (system.curvature + system.damping + TINY).reciprocal_()
    room = system.bases.empty(d)
    r = -(system.masked(system.slope) + system.product(*step, room))
    z = system.masked(r * scale)
    p, parts = system.bases.empty(d)  # the parts are views of p
    p.copy_(z)
    rz = _dot(r, z)
    for iteration in range(iterations):
        jp = system.along.pushed(parts)
        ap = system.product(p, jp, room)
        size = _ratio(rz, _dot(p, ap))
        _add(d, size, p)
        _add(jd, size, jp)
        if iteration + 1 == iterations:
            break
        _add(r, -size, ap)
        z = system.masked(r * scale)
        before, rz = rz, _dot(r, z)
        p.mul_(_ratio(rz, before)).add_(z)
    return Step(d, jd)


@without_graph
def promised_by(system: System, step: Step, rate: float = 1.0) -> list[float]:
    """Return by how much a step lowers the model without its damping, for each task.

    Args:
        system: the model.
        step: the step.
        rate: a factor of the step.
    """
    d, jd = step
    hjd = system.loss.product(system.along.outputs, jd)
    curved = _dot(*(own.flatten(start_dim=-2) for own in (jd, hjd)))
    if system.penalties is not None:
        curved = curved + _dot(system.bases.scaled(d, system.penalties), d)
    promised = -rate * (_dot(system.slope, d) + 0.5 * rate * curved)
    return promised.reshape(-1).tolist() if isinstance(promised, Tensor) else [promised]


def limited(
    system: System,
    step: Step,
    lengths: Sequence[Sequence[float]],
    longest: Sequence[float],
    rate: float,
) -> tuple[Tensor, list[float], list[float]]:
    """Return steps of which no layer's is too long.

    The whole step is made shorter, or that of each layer by itself, whichever promises more.

    Args:
        system: the model.
        step: the step.
        lengths: of the step of each layer, for each task.
        longest: the largest length that is allowed, for each task.
        rate: the factor that steps are going to be multiplied by.

    Returns:
        The steps, ``(*batch, coefficients)``; by how much they lower the model, for each task; and
        the largest length of each.
    """
    far = [math.nan if any(map(math.isnan, own)) else max(own) for own in lengths]
    pairs = list(zip(lengths, longest, strict=True))
    apart = [[min(most / (part + TINY), 1.0) for part in own] for own, most in pairs]
    whole = [min(own) for own in apart]
    d = step.d
    if all(limit == 1.0 for limit in whole):
        return d, promised_by(system, step, rate), far
    batch, bases = system.bases.batch, system.bases
    limits = [whole] * len(bases.shapes), list(zip(*apart, strict=True))
    first, second = [
        bases.row(
            [
                part * spread(part.new_tensor(own), batch, part)
                for part, own in zip(bases.parts(d), limit, strict=True)
            ]
        )
        for limit in limits
    ]
    by = [
        promised_by(system, Step(own, system.pushed(own)), rate)
        for own in (first.detach(), second.detach())
    ]
    better = [one >= other for one, other in zip(*by, strict=True)]
    chosen = spread(d.new_tensor(better, dtype=torch.bool), batch, d)
    return (
        torch.where(chosen, first, second),
        [one if best else other for one, other, best in zip(*by, better, strict=True)],
        [length * limit for length, limit in zip(far, whole, strict=True)],
    )


def _dot(a: Tensor, b: Tensor) -> Tensor | float:
    """<a, b> of each task, ``(*batch, 1)``; of one task on a CPU a number, which costs less.

    Both sum in one order, so a task steps alone as it does beside others, bit for bit.
    """
    if a.dim() == 1 and a.device.type == "cpu":
        return (a * b).sum().item()
    return (a * b).sum(dim=-1, keepdim=True)


def _ratio(a: Tensor | float, b: Tensor | float) -> Tensor | float:
    """a / b; 0 where b is not above 0."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.where(b > TINY, a / b, 0.0)
    return a / b if b > TINY else 0.0


def _add(a: Tensor, size: Tensor | float, b: Tensor) -> None:
    """Make a to a + size b of each task."""
    if isinstance(size, Tensor):
        a.addcmul_(spread(size.reshape(-1), a.shape[: size.dim() - 1], a), b)
    else:
        a.add_(b, alpha=size)
