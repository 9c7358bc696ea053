"""Steps of conjugate gradients towards the minimum of the damped Gauss-Newton model.

The model of all weights is <g, d> + 1/2 d^T A d with

    A = J^T H J + P + nu sum_l k_l I_l

as in :mod:`metaopt.learned.subspace`. Products with J and J^T are passes through the network, so A
is exact and never formed (Martens, 2010). The preconditioner is the Kronecker-factored curvature.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metaopt.learned.kronecker import TINY, LayerCurvature, spread
from metaopt.learned.network_pass import NetworkPass
from metaopt.output_loss import OutputLoss

Matrices = list[Tensor]
"""Of each layer, ``(*batch, out, in + 1)``."""


class System(NamedTuple):
    """The linear system A d = -g, and what approximates it.

    Attributes:
        at: the forward pass where the step begins.
        loss: of the outputs.
        factors: the curvature of each layer, decomposed.
        curvatures: of the coefficients of each layer.
        damping: nu k_l of each layer, ``(*batch, 1, 1)``.
        penalties: the curvature of penalties at each entry; None without any.
        moving: masks of the entries that move; None where all do.
    """

    at: NetworkPass
    loss: OutputLoss
    factors: Sequence[LayerCurvature]
    curvatures: Sequence[Tensor]
    damping: Sequence[Tensor]
    penalties: Sequence[Tensor] | None = None
    moving: Sequence[Tensor] | None = None

    def product(self, d: Sequence[Tensor]) -> Matrices:
        """Return A d.

        Args:
            d: of each layer.
        """
        jd = self.at.pushed(d)
        found = self.at.gradients(self.loss.product(self.at.outputs, jd))
        found = [own + nu * part for own, nu, part in zip(found, self.damping, d, strict=True)]
        if self.penalties is not None:
            found = [own + p * part for own, p, part in zip(found, self.penalties, d, strict=True)]
        return self.masked(found)

    def preconditioned(self, r: Sequence[Tensor]) -> Matrices:
        """Return the approximate solution of A d = r.

        Args:
            r: of each layer.
        """
        return self.masked(
            [
                f.back(f.into(own) / (k + nu + TINY))
                for f, own, k, nu in zip(
                    self.factors, r, self.curvatures, self.damping, strict=True
                )
            ]
        )

    def masked(self, matrices: Matrices) -> Matrices:
        """Return matrices, with 0 where nothing moves.

        Args:
            matrices: of each layer.
        """
        if self.moving is None:
            return matrices
        return [own * mask for own, mask in zip(matrices, self.moving, strict=True)]


def refined(
    system: System, gradient: Sequence[Tensor], steps: Sequence[Tensor], iterations: int
) -> Matrices:
    """Return a step after some iterations of preconditioned conjugate gradients.

    Each lowers the damped model, whatever it begins from. A meta-gradient goes through the steps as
    if what is added did not depend on them.

    Args:
        system: what is solved.
        gradient: g.
        steps: what it begins from.
        iterations: how many.
    """
    if not iterations:
        return list(steps)
    added = _solved(system, gradient, [step.detach() for step in steps], iterations)
    return [step + own for step, own in zip(steps, added, strict=True)]


@torch.no_grad()
def _solved(
    system: System, gradient: Sequence[Tensor], steps: Sequence[Tensor], iterations: int
) -> Matrices:
    """What is added to a step."""
    batch = steps[0].shape[:-2]
    added = [torch.zeros_like(step) for step in steps]
    applied = system.product(steps)
    r = [-(g + a) for g, a in zip(system.masked(list(gradient)), applied, strict=True)]
    p = z = system.preconditioned(r)
    rz = _dot(r, z)
    for iteration in range(iterations):
        ap = system.product(p)
        curved = _dot(p, ap)
        size = torch.where(curved > TINY, rz / curved, 0.0)
        for own, along in zip(added, p, strict=True):
            own.addcmul_(spread(size, batch, own), along)
        if iteration + 1 == iterations:
            break
        r = [own - spread(size, batch, own) * a for own, a in zip(r, ap, strict=True)]
        z = system.preconditioned(r)
        before, rz = rz, _dot(r, z)
        turn = torch.where(before > TINY, rz / before, 0.0)
        p = [own + spread(turn, batch, own) * along for own, along in zip(z, p, strict=True)]
    return added


@torch.no_grad()
def promised_by(system: System, gradient: Sequence[Tensor], steps: Sequence[Tensor]) -> Tensor:
    """Return by how much a step lowers the model without its damping, ``(tasks,)``.

    Args:
        system: the model.
        gradient: g.
        steps: the step.
    """
    jd = system.at.pushed(steps)
    curved = (jd * system.loss.product(system.at.outputs, jd)).sum(dim=(-2, -1)).reshape(-1)
    if system.penalties is not None:
        penalised = [p * d for p, d in zip(system.penalties, steps, strict=True)]
        curved = curved + _dot(penalised, steps)
    return -(_dot(gradient, steps) + 0.5 * curved)


def limited(
    system: System,
    gradient: Sequence[Tensor],
    steps: Sequence[Tensor],
    lengths: Sequence[Sequence[float]],
    longest: Sequence[float],
    rate: float,
) -> tuple[Matrices, list[float], list[float]]:
    """Return steps of which no layer's is too long.

    The whole step is made shorter, or that of each layer by itself, whichever promises more.

    Args:
        system: the model.
        gradient: g.
        steps: of each layer.
        lengths: of the step of each layer, for each task.
        longest: the largest length that is allowed, for each task.
        rate: the factor that steps are going to be multiplied by.

    Returns:
        The steps; by how much they lower the model, for each task; and the largest length of each.
    """
    far = [math.nan if any(map(math.isnan, own)) else max(own) for own in lengths]
    pairs = list(zip(lengths, longest, strict=True))
    apart = [[min(most / (part + TINY), 1.0) for part in own] for own, most in pairs]
    whole = [min(own) for own in apart]

    def promised(own: Sequence[Tensor]) -> list[float]:
        found: list[float] = promised_by(
            system, gradient, [d.detach() * rate for d in own]
        ).tolist()
        return found

    if all(limit == 1.0 for limit in whole):
        return list(steps), promised(steps), far
    batch = steps[0].shape[:-2]
    shorter = [
        [
            step * spread(step.new_tensor(own), batch, step)
            for step, own in zip(steps, limits, strict=True)
        ]
        for limits in ([whole] * len(steps), list(zip(*apart, strict=True)))
    ]
    by = [promised(own) for own in shorter]
    better = [one >= other for one, other in zip(*by, strict=True)]
    chosen = steps[0].new_tensor(better, dtype=torch.bool)
    return (
        [torch.where(spread(chosen, batch, a), a, b) for a, b in zip(*shorter, strict=True)],
        [a if first else b for a, b, first in zip(*by, better, strict=True)],
        [length * limit for length, limit in zip(far, whole, strict=True)],
    )


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """<a, b> of each task, ``(tasks,)``."""
    found = [(own * other).sum(dim=(-2, -1)) for own, other in zip(a, b, strict=True)]
    return torch.stack(found).sum(dim=0).reshape(-1)
