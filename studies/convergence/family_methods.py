"""Methods of the study symmetric-families without learning, on many points and rates at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metaopt.symmetry.level_set import LevelSetTeleport
from studies.functions.families_2d import Family2D, times

Array = NDArray[np.float64]
Teleporter = Callable[[Family2D, Tensor], Tensor]

TARGET = 1e-6  # of the initial loss
START_ONLY = math.inf


def steepest(members: Family2D, w: Tensor) -> Tensor:
    """Move to the steepest point of the orbit, by the exact rotation."""
    return members.steepest(w)


def by_level_set(members: Family2D, w: Tensor) -> Tensor:
    """Move along the level set by 50 Hessian-vector products, without using the symmetry.

    Args:
        members: of the family.
        w: where to begin, ``(B, 2)``.
    """
    found = LevelSetTeleport()(None, [w], lambda parameters: members.loss(parameters[0]))
    return found.parameters[0]


class Grid(NamedTuple):
    """What a method's numbers are chosen from, on validation members."""

    rates: Sequence[float]
    momenta: Sequence[float]
    every: Sequence[float]


@dataclass(frozen=True)
class Method:
    """An update rule with its name.

    Attributes:
        every: teleports at steps 0, every, 2 every, ...; ``START_ONLY``; None for never.
        momentum: of heavy-ball, v <- momentum v + g, w <- w - rate v; kept through teleports.
        rate: the learning rate; None for 1 / lambda_0, lambda_0 = |g^T H g| / ||g||^2, of
            Proposition 3.3.
        newton: w <- w - H^-1 g instead.
    """

    name: str
    every: float | None = None
    momentum: float = 0.0
    rate: float | None = 0.1
    newton: bool = False
    teleporter: Teleporter = steepest

    def choices(self, grid: Grid) -> list[Method]:
        """All that the grid offers: the rate, the momentum, and how often to teleport."""
        rates = grid.rates if self.rate is not None else (None,)
        momenta = grid.momenta if self.momentum else (0.0,)
        repeats = self.rate is not None and self.every is not None and self.every < math.inf
        every = grid.every if repeats else (self.every,)
        return [
            replace(self, rate=rate, momentum=momentum, every=gap)
            for rate, momentum, gap in product(rates, momenta, every)
        ]


METHODS = (
    Method("GD"),
    Method("momentum", momentum=0.9),
    Method("GD, rate 1/λ0", rate=None),
    Method("teleport at start, GD", START_ONLY),
    Method("teleport at start, momentum", START_ONLY, momentum=0.9),
    Method("teleport often, GD", 5),
    Method("teleport often, momentum", 5, momentum=0.9),
    Method("teleport always, rate 1/λ0", 1, rate=None),
    Method("level set at start, GD", START_ONLY, teleporter=by_level_set),
    Method("Newton", rate=None, newton=True),
)
"""In the order of the table; "often" is each step or every fifth, as tuned."""


def run(members: Family2D, starts: Tensor, methods: Sequence[Method], steps: int) -> Tensor:
    """L_t / L_0, ``(steps + 1, M, B)``, of methods that differ in numbers alone.

    Soon after a loss is below the target, or not below 1e12 L_0, its run ends, and it is repeated.
    """
    first, batch = methods[0], len(starts)
    every = torch.tensor([math.inf if one.every is None else one.every for one in methods])
    rate, momentum = (
        torch.tensor(values, dtype=torch.float64).repeat_interleave(batch)
        for values in ([one.rate or 0.0 for one in methods], [one.momentum for one in methods])
    )
    every = every.repeat_interleave(batch)
    moved = starts if first.every is None else first.teleporter(members, starts)
    w, velocity = moved.repeat(len(methods), 1), torch.zeros(len(every), 2, dtype=torch.float64)
    columns = torch.arange(len(every))
    members = members.take(columns % batch)
    initial = members.loss(starts.repeat(len(methods), 1))
    losses = torch.ones(steps + 1, len(every), dtype=torch.float64)
    for t in range(steps):
        due = (t % every == 0).nonzero()[:, 0] if t else columns[:0]
        if len(due) == len(columns):
            w = first.teleporter(members, w)
        elif len(due):
            w = w.index_put((due,), first.teleporter(members.take(due), w[due]))
        gradient = members.gradient(w)
        if first.newton:
            w = w - torch.linalg.solve_ex(members.hessian(w), gradient.unsqueeze(-1))[0][..., 0]
        elif first.rate is None:
            w = w - gradient / lambda_0(members, w, gradient).unsqueeze(-1)
        else:
            velocity = momentum.unsqueeze(-1) * velocity + gradient
            w = w - rate.unsqueeze(-1) * velocity
        relative = members.loss(w) / initial
        losses[t + 1, columns] = relative
        if t % 10 == 9:
            going = (relative > TARGET) & (relative < 1e12)
            losses[t + 1 :, columns[~going]] = relative[~going]
            columns, every, rate, momentum, initial, w, velocity = (
                tensor[going] for tensor in (columns, every, rate, momentum, initial, w, velocity)
            )
            members = members.take(going.nonzero()[:, 0])
        if not len(columns):
            break
    return losses.reshape(steps + 1, len(methods), batch)


def lambda_0(members: Family2D, w: Tensor, gradient: Tensor) -> Tensor:
    """|g^T H g| / ||g||^2, ``(..., B)``; 1 where g = 0."""
    square = gradient.square().sum(-1)
    bend = (gradient * times(members.hessian(w), gradient)).sum(-1).abs()
    return torch.where((square > 0) & (bend > 0), bend / square, 1.0)


def steps_to_target(relative: Tensor) -> Array:
    """The first t with L_t <= 1e-6 L_0, ``(steps + 1, ...)`` -> ``(...)``; inf if there is none."""
    reached = (relative <= TARGET).numpy()
    first = np.argmax(reached, axis=0)
    return np.where(reached.any(axis=0), first, np.inf)


def score(relative: Tensor) -> Array:
    """What is minimised in tuning, ``(steps + 1, ..., B)`` -> ``(...)``.

    The steps to the target, all steps where it is not reached, averaged over members and starts;
    and, to decide between equals, a thousandth of the mean of log10 L_t / L_0, in [-6, 6].
    """
    steps = np.minimum(steps_to_target(relative), len(relative) - 1).mean(axis=-1)
    logs = relative.nan_to_num(1e6, 1e6, 1e6).clamp(TARGET, 1e6).log10()
    return np.asarray(steps + 1e-3 * logs.mean(dim=(0, -1)).numpy())


def tuned(
    method: Method, members: Family2D, starts: Tensor, steps: int, grid: Grid
) -> tuple[Method, float]:
    """The best of a method's choices, on validation members, and its score."""
    choices = method.choices(grid)
    scores = score(run(members, starts, choices, steps))
    best = int(np.argmin(scores))
    return choices[best], float(scores[best])
