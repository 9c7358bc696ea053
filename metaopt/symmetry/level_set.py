"""Level-set teleportation (arXiv 2403.03362): a larger gradient at the same loss, without a group.

It maximises 1/2 log ||g||^2 subject to f <= f(w_0), where f is the loss, g its gradient and H its
Hessian. It solves a sequence of linear models, as the authors' code does. Each needs one
Hessian-vector product. With q = H g / ||g||^2, the gradient of what is maximised, a step is

    d = rho q - v g,   v = max(0, (rho q.g + f - f(w_0)) / ||g||^2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from metaopt.checks import check_not_negative, check_positive, check_whole
from metaopt.errors import UserError
from metaopt.symmetry.element import choose, per_task
from metaopt.symmetry.objectives import (
    LossFunction,
    first_order,
    per_task_sum,
    value_and_gradient,
)
from metaopt.symmetry.orbit import Orbit
from metaopt.symmetry.search import SearchResult

PROMISED = 0.1  # the part of the linear model's rise that a step must reach


class Stopped(IntEnum):
    """Why the search of a task ended."""

    ITERATIONS = 0  # all were made
    STATIONARY = 1  # q is a multiple of g on the level set, or g = 0
    NO_STEP = 2  # no size tried rose below the bound on the loss
    NOT_FINITE = 3  # the loss, g or H g at the point reached


@dataclass(frozen=True)
class LevelSetResult(SearchResult):
    """Where a level-set search ended, with the losses and gradient norms of its K iterations.

    Attributes:
        parameters: the parameters at the end.
        rejected: ``(*batch,)`` bool, whether a task stayed at its start; ``stopped`` says why.
        elements: empty, as no group acts.
        gradient_norms: ``(K + 1, *batch)`` float64, the norm ||g|| (not squared) from the start on.
        losses: ``(K + 1, *batch)`` float64, from the start on.
        stopped: ``(*batch,)`` int64, values of :class:`Stopped`.
        not_finite: ``(*batch,)`` int64, steps that were rejected for a NaN or an infinity.
    """

    gradient_norms: Tensor = field(default_factory=lambda: torch.empty(0))
    losses: Tensor = field(default_factory=lambda: torch.empty(0))
    stopped: Tensor = field(default_factory=lambda: torch.empty(0))
    not_finite: Tensor = field(default_factory=lambda: torch.empty(0))


class _Point(NamedTuple):
    parameters: list[Tensor]
    gradient: list[Tensor]
    loss: Tensor  # (*batch,) float64
    square: Tensor  # ||g||^2, (*batch,) float64

    def finite(self) -> Tensor:
        return self.loss.isfinite() & self.square.isfinite()

    def where(self, mask: Tensor, other: _Point) -> _Point:
        """Return this point for the tasks of the mask, and the other for the rest."""
        return _Point(
            choose(mask, self.parameters, other.parameters),
            choose(mask, self.gradient, other.gradient),
            *choose(mask, self[2:], other[2:]),
        )


@dataclass(frozen=True)
class LevelSetTeleport:
    """A search for a larger gradient at no larger a loss, for any twice differentiable loss.

    It uses no group, so it takes any model. It keeps the loss, but not the outputs. Let f_0 be the
    loss at the start. No task ends with a loss above f_0 + tolerance |f_0|, or with a gradient norm
    below that at its start.

    A step of a task is accepted if its loss stays below that bound, and if log ||g|| rises by at
    least a tenth of what the linear model promises. (Where the model promises a fall, on the way
    back to the level set, log ||g|| may fall by at most twice as much.) Otherwise rho is halved for
    this task, and the step is tried again. A step that is not finite is rejected and counted.

    Attributes:
        iterations: largest number of steps. A step costs a Hessian-vector product, and one or two
            gradients for each try.
        rho: size of the first step, in units of a weight squared.
        tolerance: by how much the loss may rise, as a fraction of |f_0|.
        max_backtracks: how often rho is halved in one step at most.
        growth: factor of rho after a step whose first try was accepted; 1 in the source.
        corrections: Newton steps along g back to the level set in each try, a gradient each; 0 in
            the source, which then has to keep rho near sqrt(tolerance).
        stationary: the search of a task ends where
            ||q - max(q.g, 0) g / ||g||^2|| <= stationary ||q||.

    Source: arXiv 2403.03362; the growth of rho and the corrections are this library's.
    """

    by_group: ClassVar[bool] = False

    iterations: int = 50
    rho: float = 0.1
    tolerance: float = 1e-4
    max_backtracks: int = 20
    growth: float = 2.0
    corrections: int = 1
    stationary: float = 1e-6

    def __post_init__(self) -> None:
        for name, low in (("iterations", 1), ("max_backtracks", 0), ("corrections", 0)):
            check_whole(name, getattr(self, name), low)
        for name in ("rho", "tolerance"):
            check_positive(name, getattr(self, name), getattr(type(self), name))
        for name in ("growth", "stationary"):
            check_not_negative(name, getattr(self, name))
        if self.growth < 1 or self.stationary >= 1:
            raise UserError(
                f"expected growth >= 1 and 0 <= stationary < 1, got {self.growth} and "
                f"{self.stationary}: the defaults are 2 and 1e-6"
            )

    def __call__(
        self, orbit: Orbit | None, parameters: Sequence[Tensor], loss: LossFunction
    ) -> LevelSetResult:
        """Return where the search ends.

        Args:
            orbit: not used, as no group acts.
            parameters: where the search starts; they are not changed.
            loss: the losses as a function of the parameters.
        """
        at = best = first_point = _point(parameters, loss)
        level = at.loss
        rho = torch.full_like(level, self.rho)
        not_finite = torch.zeros_like(level, dtype=torch.int64)
        stopped = torch.full_like(not_finite, Stopped.ITERATIONS)
        active = torch.ones_like(not_finite, dtype=torch.bool)
        norms, losses = [at.square.sqrt()], [level]
        for _ in range(self.iterations):
            q = _log_gradient(at, loss)
            for reason, met in self._ends(at, q, level).items():
                stopped = torch.where(active & met, int(reason), stopped)
                active = active & ~met
            if not active.any():
                break
            trying, first = active, torch.ones_like(active)
            for _ in range(self.max_backtracks + 1):
                tried, promised = self._try(at, q, rho, level, loss)
                not_finite = not_finite + (trying & ~tried.finite())
                rise = 0.5 * (tried.square / at.square).log()
                enough = torch.where(promised > 0, PROMISED, 2.0) * promised
                good = trying & tried.finite() & (tried.loss <= self._highest(level))
                good = good & (rise >= enough)
                at = tried.where(good, at)
                trying = trying & ~good
                rho = torch.where(trying, rho / 2, rho)
                rho = torch.where(good & first, rho * self.growth, rho)
                first = first & ~trying
                if not trying.any():
                    break
            stopped = torch.where(trying, int(Stopped.NO_STEP), stopped)
            active = active & ~trying
            best = at.where(at.square > best.square, best)
            norms.append(at.square.sqrt())
            losses.append(at.loss)
        return LevelSetResult(
            best.parameters,
            ~(best.square > first_point.square),
            [],
            torch.stack(norms),
            torch.stack(losses),
            stopped,
            not_finite,
        )

    def _highest(self, level: Tensor) -> Tensor:
        return level + self.tolerance * level.abs()

    def _ends(self, at: _Point, q: list[Tensor], level: Tensor) -> dict[Stopped, Tensor]:
        """Return the reasons to end the search, each with the tasks it applies to."""
        dims = level.dim()
        size = _dot(q, q, dims).sqrt()
        along = _dot(q, at.gradient, dims).clamp(min=0) / at.square
        across = [a - per_task(along, a) * b for a, b in zip(q, at.gradient, strict=True)]
        on_level = level - at.loss <= self.tolerance * level.abs()
        flat = (_dot(across, across, dims).sqrt() <= self.stationary * size) & on_level
        none = (at.square == 0) | (size == 0)
        broken = ~(at.finite() & (size.isfinite() | none))
        return {Stopped.NOT_FINITE: broken, Stopped.STATIONARY: none | flat}

    def _try(
        self, at: _Point, q: list[Tensor], rho: Tensor, level: Tensor, loss: LossFunction
    ) -> tuple[_Point, Tensor]:
        """Return the point after a step of size rho, and the rise of log ||g|| that is promised."""
        along = _dot(q, at.gradient, level.dim())
        v = ((rho * along + at.loss - level) / at.square).clamp(min=0)
        tried = _point(_moved(_moved(at.parameters, rho, q), -v, at.gradient), loss)
        for _ in range(self.corrections):
            above = (tried.loss - level).clamp(min=0) / tried.square
            if not (above > 0).any():
                break
            corrected = _point(_moved(tried.parameters, -above, tried.gradient), loss)
            tried = corrected.where(above > 0, tried)
        return tried, rho * _dot(q, q, level.dim()) - v * along


def _point(parameters: Sequence[Tensor], loss: LossFunction) -> _Point:
    own = [parameter.detach() for parameter in parameters]
    losses, gradient = first_order(own, loss)
    wide = [g.double() for g in gradient]
    return _Point(own, wide, losses.double(), _dot(wide, wide, losses.dim()))


def _log_gradient(at: _Point, loss: LossFunction) -> list[Tensor]:
    """Return q = H g / ||g||^2 in float64: 0 where the loss is linear, not finite where g = 0."""
    own = [parameter.detach().requires_grad_() for parameter in at.parameters]
    with torch.enable_grad():
        _, gradient = value_and_gradient(own, loss)
        inner = torch.stack([(g * g.detach()).sum() for g in gradient]).sum()
        products: Sequence[Tensor] = [torch.zeros_like(g) for g in gradient]
        if inner.requires_grad:
            products = torch.autograd.grad(inner, own, allow_unused=True, materialize_grads=True)
    return [h.double() / per_task(at.square, h) for h in products]


def _dot(left: Sequence[Tensor], right: Sequence[Tensor], batch_dims: int) -> Tensor:
    return per_task_sum([a * b for a, b in zip(left, right, strict=True)], batch_dims)


def _moved(parameters: Sequence[Tensor], size: Tensor, direction: Sequence[Tensor]) -> list[Tensor]:
    """Return w + size * direction, in the dtype of the parameters."""
    return [
        (p + per_task(size, d) * d).to(p.dtype) for p, d in zip(parameters, direction, strict=True)
    ]
