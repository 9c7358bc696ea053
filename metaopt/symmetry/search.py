"""Searches for the point to teleport to: gradient ascent on the Lie algebra, with backtracking."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Protocol

import torch
from torch import Tensor

from metaopt.checks import check_positive, check_whole
from metaopt.errors import UserError, shown
from metaopt.symmetry.element import Element, choose, per_task
from metaopt.symmetry.objectives import (
    GradientForm,
    LossFunction,
    Objective,
    OfOrbit,
    check_objective,
    first_order,
    form_of,
    gradient_norm,
    on_orbit,
    per_task_sum,
)
from metaopt.symmetry.orbit import Orbit
from metaopt.symmetry.slope import EvaluatedSlope, Point, Slope, TransportedSlope
from metaopt.symmetry.transported import follows_by_transport, gradient_blocks, joined

NEAR = 0.05
"""A search ends when this part of the way from its start to its bound is left: the rest would cost
more than it brings."""

AGREEMENT = 1e-2
"""A search that followed gradients by transport evaluates everywhere instead if the loss or the
objective at its end differ by more from what transport says, as a fraction of them."""

TINY = 1e-6
"""A search ends at once when it starts this near to its bound, as a fraction of the bound."""


@dataclass(frozen=True)
class SearchResult:
    """Where a search ended, and the group elements that led there.

    Attributes:
        parameters: at the end, in the order in which they were passed.
        rejected: ``(*batch,)`` bool, whether a task stayed at its start because its last move was
            rejected.
        elements: for each step of the search, T of each site; 0 where a task stayed. Empty if the
            search uses no group.
        confirmed: whether the loss and its gradient were evaluated at the end, and are within
            :data:`AGREEMENT` what they are after a move that keeps the function.
    """

    parameters: list[Tensor]
    rejected: Tensor
    elements: list[list[Element]] = field(default_factory=list)
    confirmed: bool = field(default=False, kw_only=True)


class Search(Protocol):
    """A function that finds another point of the same loss.

    A search that uses no group has an attribute ``by_group = False``. Such a search is given all
    parameters that need a gradient, and it has to keep the loss, not the outputs.
    """

    def __call__(
        self, orbit: Orbit, parameters: Sequence[Tensor], loss: LossFunction
    ) -> SearchResult:
        """Return where the search ends.

        Args:
            orbit: the points that may be reached.
            parameters: where the search starts, in the order of the orbit; they are not changed.
            loss: the losses as a function of the parameters.
        """


def moves_by_group(search: Search) -> bool:
    """Return whether a search moves along an orbit; it does unless its ``by_group`` is False."""
    return bool(getattr(search, "by_group", True))


def check_search(search: object) -> None:
    """Check that an object is a search, and not an objective by itself, for example.

    Args:
        search: the object; None passes.

    Raises:
        UserError: if it cannot be called with an orbit, parameters and a loss.
    """
    if search is None:
        return
    try:
        if isinstance(search, type):
            raise TypeError("a class")
        inspect.signature(search).bind(None, None, None)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        got = f"the class {search.__name__}" if isinstance(search, type) else type(search).__name__
        raise UserError(
            f"expected a search, called with an orbit, parameters and a loss, got {got}: build "
            f"one, or give an objective to one, GradientAscent(objective=...)"
        ) from None


def _shortened(start: Tensor, tried: Tensor, bound: Tensor) -> Tensor:
    """Return the factor that a rejected step is shortened by, ``(*batch,)``: a half or less.

    A step that passed the bound is shortened to where the chord meets the bound. A convex objective
    lies below its chord.
    """
    aimed = (1 - NEAR / 2) * (bound - start) / (tried - start)
    passed = (tried > bound) & tried.isfinite()
    return torch.where(passed, aimed.clamp(0.1, 0.9), 0.5)


def _units(directions: Sequence[Element], batch_dims: int) -> list[Element]:
    """Return directions divided by their norm, taken over all sites of a task together."""
    squares = [direction.values.square() for direction in directions]
    norm = per_task_sum(squares, batch_dims).sqrt().clamp(min=1e-300)
    return [d.with_values(d.values / per_task(norm, d.values)) for d in directions]


@dataclass(frozen=True)
class GradientAscent:
    """Gradient ascent of an objective along an orbit, with backtracking.

    Each iteration is w <- exp(a G).w. Here G is the objective's gradient with respect to T at T =
    0, divided by its norm, and a is the step of the task, at first ``initial_step``. The step of a
    task is halved if its objective would not rise, and shortened if it would pass its bound. A task
    is done after ``max_backtracks`` failures in one iteration, or when a twentieth of the way to
    its bound is left. The search ends when all tasks are done. No task ends below its start or at
    infinity.

    If the objective is a quadratic form of the gradient (see :class:`OfGradient`) and all actions
    are linear and exact for all data, one network is evaluated at the start and at the end alone:
    between them its gradients follow by transport. If the two evaluations do not agree with that,
    the search is made anew with an evaluation of each point.

    Attributes:
        iterations: largest number of steps.
        initial_step: Frobenius norm of the first T that is tried, the same for each task.
        max_backtracks: how often a step is shortened at most.
        objective: what is maximised, by default the squared gradient norm.
        max_value: largest value of the objective; a move to a larger one is not accepted, and a
            task that starts above it stays. For the default objective this is a squared norm.
        max_ratio: largest value, as a multiple of the value of each task at the start. A negative
            value rises towards 0, so for it the bound is the fraction 1 / max_ratio.
        steps_per_gradient: how many steps are made along one G where the objective has to be
            evaluated at each point. Those after the first add up, so they are tried as one, which
            is shortened like any step. Above 1 the search costs less.

    Source: eq. 3 of the paper; the backtracking and the bounds are this library's.
    """

    iterations: int = 10
    initial_step: float = 0.1
    max_backtracks: int = 8
    objective: Objective | OfOrbit = gradient_norm
    max_value: float = math.inf
    max_ratio: float = math.inf
    steps_per_gradient: int = 1

    def __post_init__(self) -> None:
        for name, low in (("iterations", 1), ("max_backtracks", 0), ("steps_per_gradient", 1)):
            check_whole(name, getattr(self, name), low)
        check_positive("initial_step", self.initial_step, type(self).initial_step)
        check_objective(self.objective)
        bounds = self.max_value, self.max_ratio
        numbers = all(isinstance(bound, Real) and not math.isnan(bound) for bound in bounds)
        if not numbers or not self.max_ratio > 1:
            value, ratio = map(shown, bounds)
            raise UserError(
                f"expected a number as max_value and max_ratio > 1, got {value} and {ratio}: "
                "inf is no bound"
            )

    def __call__(
        self, orbit: Orbit, parameters: Sequence[Tensor], loss: LossFunction
    ) -> SearchResult:
        """Return where the ascent from ``parameters`` ends."""
        objective = on_orbit(self.objective, orbit)
        if (form := form_of(objective)) is not None and follows_by_transport(orbit):
            found = self._by_transport(form, orbit, parameters, loss)
            if found is not None:
                return found
        slope = EvaluatedSlope(orbit, objective, loss)
        with orbit.remembering():
            end, rejected, way = self._climb(slope, slope.at(parameters), self.steps_per_gradient)
        return SearchResult(end.tensors, rejected, way)

    def _by_transport(
        self, form: GradientForm, orbit: Orbit, parameters: Sequence[Tensor], loss: LossFunction
    ) -> SearchResult | None:
        """Climb on transported gradients, and evaluate the loss and its gradient at the end alone.

        Returns:
            None where that is not possible, or if what was evaluated is not what was transported.
        """
        start = [parameter.detach() for parameter in parameters]
        before, gradients = first_order(start, loss)
        blocks = None if before.dim() else gradient_blocks(orbit, form.roots(gradients))
        if blocks is None or not (form.metric is None or blocks.diagonal):
            return None
        slope = TransportedSlope(blocks, form.sign)
        lowest = slope.at(blocks.start())
        end, rejected, steps = self._climb(slope, lowest, 1)
        way = [blocks.of_sites(elements) for elements in steps]
        if end is lowest:
            return SearchResult(start, rejected, way)
        with torch.no_grad():
            move = orbit.move(start, joined(orbit, way)[0])
        after, gradients = first_order(move.parameters, loss)
        value = form.sign * per_task_sum([r.double().square() for r in form.roots(gradients)], 0)
        as_transported = (after - before).abs() <= AGREEMENT * before.abs()
        as_transported &= (value - end.value).abs() <= AGREEMENT * end.value.abs()
        as_transported &= (value > lowest.value) & (value <= self._bound(lowest.value))
        if move.rejected or not as_transported:
            return None
        return SearchResult(move.parameters, rejected, way, confirmed=True)

    def _climb(
        self, slope: Slope, here: Point, steps_per_gradient: int
    ) -> tuple[Point, Tensor, list[list[Element]]]:
        """Return the highest point, which tasks were rejected, and the elements of each step."""
        bound = self._bound(here.value)
        size = torch.full_like(here.value, self.initial_step, dtype=torch.float64)
        rejected = torch.zeros_like(here.value, dtype=torch.bool)
        moved = torch.zeros_like(rejected)
        room = torch.maximum(NEAR * (bound - here.value), TINY * bound.abs())
        arrived = bound - here.value <= room
        way: list[list[Element]] = []
        made = left = 0  # steps, and how many more may be made along the same directions
        while made < self.iterations and not arrived.all():
            start, climbing, fresh = here, ~arrived, left == 0
            if fresh:
                directions = _units(slope.directions(start), arrived.dim())
                left = min(steps_per_gradient, self.iterations - made)
            steps = 1 if fresh else left  # along old directions all that are left: they add up
            made, left = made + steps, left - steps
            length = steps * size
            accepted = [direction.map(torch.zeros_like) for direction in directions]
            for _ in range(self.max_backtracks + 1):
                elements = [direction.scaled(length * climbing) for direction in directions]
                tried, kept = slope.moved(start, elements, last=left > 0)
                better = climbing & ~kept & (tried.value > start.value) & (tried.value <= bound)
                here = here.where(better, tried)
                accepted = choose_elements(better, elements, accepted)
                moved = moved | better
                rejected = torch.where(climbing, kept, rejected)
                climbing = climbing & ~better
                if not climbing.any():
                    break
                shorter = length * _shortened(start.value, tried.value, bound)
                length = torch.where(climbing, shorter, length)
            if fresh:
                size = torch.minimum(size, length)
                arrived = arrived | climbing
            arrived = arrived | (bound - here.value <= room)
            way.append(accepted)
        return here, rejected & ~moved, way

    def _bound(self, start: Tensor) -> Tensor:
        """Return the largest value to accept, finite, ``(*batch,)``."""
        largest = torch.full_like(start, min(self.max_value, torch.finfo(start.dtype).max))
        if math.isinf(self.max_ratio):
            return largest
        ratio = torch.where(start < 0, start / self.max_ratio, start * self.max_ratio)
        return torch.minimum(ratio, largest)


def choose_elements(mask: Tensor, new: Sequence[Element], old: Sequence[Element]) -> list[Element]:
    """Return ``new`` for the tasks of the mask, ``(*batch,)``, and ``old`` for the others."""
    values = choose(mask, [element.values for element in new], [element.values for element in old])
    return [element.with_values(own) for element, own in zip(new, values, strict=True)]
