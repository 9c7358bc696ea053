"""What learned whitening knows of its last step: how it went, and where the next one begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from metaopt.learned.kronecker import TINY
from metaopt.learned.network_pass import NetworkPass
from metaopt.learned.observation import Observation, SeenLoss, flatten
from metaopt.learned.place import (
    BEFORE,
    BESIDE,
    KEPT,
    LAST,
    NOW,
    REMEMBERED,
    Place,
    by_coordinate,
    changes,
    explained,
)
from metaopt.learned.trust_region import Judged, Trust, judged
from metaopt.output_loss import SIGMOID, SOFTMAX

SATURATING = (SOFTMAX, SIGMOID)  # losses whose curvature vanishes with them
ROUNDING = 1e-13  # of such a loss of a sample, in float64


@final
@dataclass(frozen=True)
class Judgement:
    """What is known of the last step of all tasks.

    Attributes:
        rows: those of a place, the last steps first; see :class:`~metaopt.learned.place.Place`.
        verdicts: of the tasks.
        known: 1 where the loss is known to be all that the gradient is of, else 0.
        penalised: whether there is a penalty beside the loss.
        least: a loss below which all is rounding.
    """

    rows: Tensor
    verdicts: Sequence[Judged]
    known: float
    penalised: bool
    least: float

    @classmethod
    def of(
        cls,
        seen: Observation,
        loss: SeenLoss,
        past: Tensor,
        trusts: Sequence[Trust],
        first: tuple[float, float],
    ) -> Judgement:
        """Return what is known.

        Args:
            seen: what is seen at w_t.
            loss: what is seen of the loss.
            past: the last steps, and where the last one began, ``(rows, coordinates)``.
            trusts: of the tasks, before.
            first: nu and the largest length where there is no last step.
        """
        now = flatten([*seen.parameters_given, *seen.gradients_given]).double().view(2, -1)
        at, known, beside = seen.network_pass, float(loss.exact), torch.zeros_like(now[0])
        if loss.output_gradient is not None:
            beside, whole, _ = explained(seen, at, now[1], loss.output_gradient)
            known *= whole
        rows = torch.cat((past, now, beside.unsqueeze(0)))
        if math.isfinite(loss.factor) and loss.factor != 1:
            rows[[REMEMBERED, BEFORE]] *= math.sqrt(loss.factor)
        penalised = loss.output_gradient is not None and bool(rows[[BEFORE, BESIDE]].any())
        told = loss.exact and all(trust.exact > 0 for trust in trusts)  # by the loss alone
        changed = None if told and not penalised else changes(rows, seen)
        verdicts = judged(trusts, _losses(loss, at), loss, changed, first, at.kinked)
        least = ROUNDING * at.outputs.shape[-1] if loss.kind in SATURATING else -math.inf
        return cls(rows, verdicts, known, penalised, least)

    @property
    def undone(self) -> bool:
        """Whether the last step of any task is taken back."""
        return any(verdict.back for verdict in self.verdicts)

    @property
    def settled(self) -> bool:
        """Whether all is rounding, so that there is nothing to gain."""
        return not self.undone and all(own.loss <= self.least for own in self.verdicts)

    @property
    def coasting(self) -> list[bool]:
        """Which tasks step with momentum."""
        return [verdict.trust.coasting > 0 for verdict in self.verdicts]

    def back(self, seen: Observation) -> Tensor:
        """Return for each coordinate whether the last step is taken back.

        Args:
            seen: what is seen at w_t.
        """
        batch = seen.gradients[0].shape[: seen.batch_dims]
        return by_coordinate([verdict.back for verdict in self.verdicts], batch, seen)

    def begun(self, seen: Observation) -> tuple[Tensor, Place, NetworkPass]:
        """Return where the next step begins: rows, the place, and the pass there.

        Args:
            seen: what is seen at w_t.
        """
        rows, at = self.rows, seen.network_pass
        if not self.undone:
            return rows, Place.of(rows, seen), at
        back = self.back(seen)
        rows = torch.cat((rows[:NOW], torch.where(back, rows[KEPT:NOW], rows[NOW:])))
        rows[LAST] = torch.where(back, 0.0, rows[LAST])
        place = Place.of(rows, seen)
        return rows, place, at.at(place.layers)

    def following(
        self, lengths: Sequence[float], promised: Sequence[float], rate: float
    ) -> list[Trust]:
        """Return the trust of each task after the next step.

        Args:
            lengths: of the step of each task.
            promised: by how much the model says that each lowers the loss.
            rate: the factor that steps are going to be multiplied by.
        """
        return [
            _after(
                verdict,
                length,
                by if rate and verdict.loss > self.least else 0.0,
                verdict.trust.exact if verdict.back else self.known,
            )
            for verdict, length, by in zip(self.verdicts, lengths, promised, strict=True)
        ]


def _after(verdict: Judged, length: float, promised: float, exact: float) -> Trust:
    """The trust after a step; of a step that promises nothing, which is not made, both are 0."""
    if verdict.trust.coasting and math.isfinite(length) and promised < 0:
        promised = TINY  # momentum may lead upwards
    elif not (math.isfinite(length) and promised > 0):  # by rounding alone it can be below 0
        length = promised = 0.0
    return verdict.trust._replace(
        steps=verdict.trust.steps + 1,
        last=length,
        promised=promised,
        loss=verdict.loss if math.isfinite(verdict.loss) else math.inf,
        exact=exact,
    )


def _losses(loss: SeenLoss, at: NetworkPass) -> list[float]:
    """The loss of each task, in float64; where targets are known it is computed from them anew."""
    if loss.targets is None:
        own: list[float] = loss.values.double().reshape(-1).tolist()
        return own
    own = loss.kind.terms(at.outputs, loss.targets.double()).sum(dim=(-2, -1)).reshape(-1).tolist()
    return own
