"""How far a model of the loss is trusted (Conn, Gould and Toint, 2000, chapter 6).

The damping nu and the largest length of a step follow the ratio of what a step has changed to what
the model promised. Where a network has kinks (:mod:`metaopt.learned.kinks`) the model can be wrong
at any length, and the region shrinks to nothing beside a long gradient. Then a task coasts: for
some steps it has momentum, a damping that stays and a large region.

These are a few numbers for each task, so they are numbers of Python: a tensor of one entry costs a
hundred times as much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metaopt.learned.kronecker import TINY
from metaopt.learned.observation import SeenLoss

GOOD, POOR = 0.5, 0.05  # of the ratio of the change of the loss to what the model promised
EASED, TIGHTENED = 3.0, 4.0  # factors of nu
RELIABLE = 0.75  # of that ratio, for a longer step
LONGER, SHORTER = 2.0, 0.5  # factors of the last length
RISE = 0.02  # of the loss, that a step may make
NU = (1e-9, 1e6)  # its range
SHORTEST, FARTHEST = 1e-7, 0.5  # range of the largest length, over that of the weights of its layer
STUCK = 0.1  # of that ratio, for a step that is no good
NEAR = (1e-3, 0.03)  # of the length of such a step, where a task begins to coast
COASTING = 40  # steps
COASTING_NU = 0.03
COASTING_RISE = 0.2  # of the lowest loss since then, above it, that a step may lead to
CERTAIN = 0.9  # of the ratio, for a model that is right again
AFTER = (1e-2, 0.1)  # nu and the largest length after it
LEAST, LEAST_DOUBLE = 1e-7, 1e-12  # of a loss, for a promise or a change that is no rounding


class Trust(NamedTuple):
    """How far the model of a task is trusted.

    Attributes:
        steps: how many steps were made.
        nu: the damping.
        length: the largest length of a step, over that of the weights of its layer.
        last: the length of the last step.
        promised: by how much the model said that it would lower the loss.
        loss: where the last step began; inf if there is none.
        exact: 1 where that was known to be all of the loss, else 0.
        coasting: how many steps with momentum are still to come.
        lowest: the lowest loss since these steps began; 0 without any.
    """

    steps: float
    nu: float
    length: float
    last: float
    promised: float
    loss: float
    exact: float
    coasting: float
    lowest: float

    def shown(self, loss: float) -> list[float]:
        """Return what an LSTM sees of a task: four channels.

        Args:
            loss: where the next step begins.
        """
        change = 0.5 * _log_ratio(loss, self.loss)
        return [
            min(max(change, -2.5), 2.5),
            math.log1p(self.steps) / 3 - 0.5,
            math.log(self.nu) / 10,
            math.log(max(self.length, 1e-9)) / 5,
        ]


class Judged(NamedTuple):
    """What is known of a task after a step.

    Attributes:
        trust: how far its model is trusted now.
        loss: where the next step begins.
        back: whether the last step is taken back.
    """

    trust: Trust
    loss: float
    back: bool


def first_trust(damping: float, length: float) -> Trust:
    """Return the trust before the first step.

    Args:
        damping: nu.
        length: the largest length of a step.
    """
    return Trust(0.0, damping, length, 0.0, 0.0, math.inf, 1.0, 0.0, 0.0)


def trusts_of(region: Tensor, coasting: Tensor) -> list[Trust]:
    """Return the trust of each task from a state, ``(7, tasks)`` and ``(2, tasks)``."""
    return [Trust(*own) for own in torch.cat((region, coasting)).mT.tolist()]


def region_of(trusts: Sequence[Trust], device: torch.device) -> list[Tensor]:
    """Return the state of trusts, ``(7, tasks)`` and ``(2, tasks)`` float64.

    What is known of steps with momentum is apart, so that states that were saved without it load.

    Args:
        trusts: of the tasks.
        device: of the state.
    """
    rows = list(zip(*trusts, strict=True))
    region = torch.tensor(rows, dtype=torch.float64, device=device)
    return [region[:-2], region[-2:]]


def judged(
    before: Sequence[Trust],
    losses: Sequence[float],
    seen: SeenLoss,
    changes: tuple[Sequence[float], Sequence[float]] | None,
    first: tuple[float, float],
    kinked: Callable[[], bool],
) -> list[Judged]:
    """Return what is known of each task after a step.

    Args:
        before: the trust before.
        losses: those now.
        seen: what is seen of the loss.
        changes: those of the losses, and of penalties beside them, by the gradients before and
            after the step; None where the losses alone tell, and there are no penalties.
        first: nu and the largest length where there is no last step.
        kinked: says whether the network has kinks.
    """
    whole, beside = changes or ([math.nan] * len(losses), [0.0] * len(losses))
    return [
        _judged(trust, loss, seen, crossed, penalties, first, kinked)
        for trust, loss, crossed, penalties in zip(before, losses, whole, beside, strict=True)
    ]


def _judged(
    trust: Trust,
    now: float,
    seen: SeenLoss,
    crossed: float,
    beside: float,
    first: tuple[float, float],
    kinked: Callable[[], bool],
) -> Judged:
    before = trust.loss * seen.factor
    if math.isnan(before):
        before = math.inf
    fresh = math.isinf(before)
    change, loss = now - before + beside, now
    if trust.exact <= 0 or not seen.exact:
        change = crossed
    if not (seen.exact or fresh):
        loss = before + change
    promised = trust.promised * (1.0 if fresh else seen.factor)
    least = (LEAST if seen.targets is None else LEAST_DOUBLE) * abs(before)
    told = not fresh and (promised > least or not abs(change) <= least)
    ratio = -change / (promised + TINY)
    limit, left, lowest = before + RISE * abs(before), 0.0, 0.0
    if fresh:
        nu, length = first if trust.steps > 0 else (trust.nu, trust.length)
    elif trust.coasting > 0:
        lowest = min(trust.lowest * seen.factor, before)
        limit = lowest + COASTING_RISE * abs(lowest)
        right = promised > least and ratio > CERTAIN
        left = 0.0 if right else trust.coasting - (trust.promised > 0)  # of a step that was made
        nu, length = (trust.nu, trust.length) if left else AFTER
        if left and not before + change <= limit:
            length = SHORTER * trust.last
    elif told and _stuck(trust, change, ratio, before) and kinked():
        nu, length, left, lowest = COASTING_NU, FARTHEST, float(COASTING), before
    else:
        nu, length = _followed(trust, ratio) if told else (trust.nu, trust.length)
    back = not fresh and not before + change <= limit
    following = trust._replace(
        nu=min(max(nu, NU[0]), NU[1]),
        length=max(length, SHORTEST),
        loss=before,
        coasting=left,
        lowest=lowest,
    )
    return Judged(following, before if back else loss, back)


def _stuck(trust: Trust, change: float, ratio: float, before: float) -> bool:
    """Whether a short step came to nothing, though not to a loss that is far higher."""
    small = NEAR[0] < trust.last < NEAR[1]
    return small and not ratio > STUCK and change <= COASTING_RISE * abs(before)


def _followed(trust: Trust, ratio: float) -> tuple[float, float]:
    """The damping and the largest length after a step that changed the loss by a ratio."""
    nu, length, poor = trust.nu, trust.length, not ratio > POOR
    if ratio > GOOD:
        nu /= EASED
    elif poor:
        nu *= TIGHTENED
    if ratio > RELIABLE:
        length = max(length, min(LONGER * trust.last, FARTHEST))
    elif poor:
        length = SHORTER * trust.last
    return nu, length


def _log_ratio(now: float, before: float) -> float:
    """log(now / before); 0 where there is none before, or where one is no loss."""
    if math.isinf(before) or not (now >= 0 and before >= 0) or now == before == 0:
        return 0.0
    if now == 0 or math.isinf(now) or before == 0:
        return -math.inf if now == 0 else math.inf
    return math.log(now) - math.log(before)
