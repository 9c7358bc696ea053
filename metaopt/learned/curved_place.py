"""The place where a step of learned whitening begins, with the curvature of the loss there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from metaopt.learned.judgement import Judgement
from metaopt.learned.kronecker import TINY, LayerCurvature, spread, with_penalties
from metaopt.learned.network_pass import NetworkPass
from metaopt.learned.observation import Observation, SeenLoss
from metaopt.learned.place import LAST, NOW, PAST, SLOPES, Place, computed_anew
from metaopt.learned.refinement import System
from metaopt.learned.subspace import minimum, model_of
from metaopt.output_loss import OutputLoss


@final
@dataclass(frozen=True)
class CurvedPlace:
    """A place, with the gradient and the curvature of each layer.

    Attributes:
        place: the weights, and the last steps.
        at: the forward pass there.
        kind: the loss as a function of the output.
        slope: the gradient of each layer, ``(*batch, out, in + 1)``.
        factors: the curvature of each layer, decomposed.
        curvatures: of the coefficients of each layer, with what penalties add.
        means: those of each layer, ``(*batch,)``.
        penalties: the curvature of penalties at each entry; None without any.
        moving: masks of the entries that move; None where all do.
    """

    place: Place
    at: NetworkPass
    kind: OutputLoss
    slope: Sequence[Tensor]
    factors: Sequence[LayerCurvature]
    curvatures: Sequence[Tensor]
    means: Sequence[Tensor]
    penalties: Sequence[Tensor] | None
    moving: Sequence[Tensor] | None

    @classmethod
    def of(
        cls, seen: Observation, loss: SeenLoss, known: Judgement, place: Place, at: NetworkPass
    ) -> CurvedPlace:
        """Return a place with its curvature.

        Args:
            seen: what is seen.
            loss: what is seen of the loss.
            known: of the last step.
            place: where the step begins.
            at: the forward pass there.
        """
        factors = at.curvatures(loss.kind, int(known.verdicts[0].trust.steps))
        slope = place.row(SLOPES)
        if loss.targets is not None:
            slope = computed_anew(place, at, loss.kind, loss.targets.double())
        penalties = place.penalties() if known.penalised else None
        curvatures = with_penalties(factors, penalties)
        means = [k.mean(dim=(-2, -1)) for k in curvatures]
        moving = _moving(seen) if seen.absent else None
        return cls(place, at, loss.kind, slope, factors, curvatures, means, penalties, moving)

    @property
    def batch(self) -> torch.Size:
        """The dimensions of tasks."""
        return self.slope[0].shape[:-2]

    def coefficients(self) -> list[Tensor]:
        """Return the last step and the gradient of each layer in the basis of its curvature.

        Returns:
            ``(2, *batch, out, in + 1)`` of each layer.
        """
        pairs = zip(self.factors, self.place.row(LAST), self.slope, strict=True)
        return [f.into(torch.stack((last, g))) for f, last, g in pairs]

    def directions(self, damped: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Return all directions of each layer, ``(*batch, directions, out, in + 1)``.

        They are those that are given and the last steps; with penalties the Newton step, too, whose
        curvature they bound from below.

        Args:
            damped: ``(*batch, dampings, out, in + 1)`` of each layer.
            gradients: coefficients, ``(*batch, out, in + 1)`` of each layer.
        """
        found = []
        for layer, own in enumerate(damped):
            last = self.place.matrices[layer][:PAST]
            parts = [own, last.movedim(0, -3) if self.batch else last]
            if self.penalties is not None:
                newton = -gradients[layer] / (self.curvatures[layer] + TINY)
                parts.append(self.factors[layer].back(newton).unsqueeze(-3))
            found.append(torch.cat(parts, dim=-3))
        if self.moving is None:
            return found
        return [own * mask.unsqueeze(-3) for own, mask in zip(found, self.moving, strict=True)]

    def minimum(self, directions: Sequence[Tensor], nu: Tensor) -> list[Tensor]:
        """Return the step to the minimum of the damped model along directions.

        The meta-gradient goes through the directions and through nu.

        Args:
            directions: of each layer.
            nu: the damping of each task, ``(tasks,)``.
        """
        model = model_of(self.at, directions, self.slope, self.means, self.kind, self.penalties)
        c = minimum(model, spread(nu, self.batch, model.product))
        parts = c.chunk(len(directions), dim=-1)
        return [
            (part.unsqueeze(-2) @ own.flatten(start_dim=-2)).reshape(weight.shape)
            for own, part, weight in zip(directions, parts, self.place.row(NOW), strict=True)
        ]

    def system(self, nu: Tensor) -> System:
        """Return the linear system whose solution is the minimum over all weights.

        Args:
            nu: the damping of each task, ``(tasks,)``.
        """
        damping = [
            spread(nu.detach(), self.batch, k) * mean[..., None, None]
            for k, mean in zip(self.curvatures, self.means, strict=True)
        ]
        return System(
            self.at,
            self.kind,
            self.factors,
            self.curvatures,
            damping,
            self.penalties,
            self.moving,
        )


def _moving(seen: Observation) -> list[Tensor]:
    """Masks of augmented weights: 0 for the parameters that stay where they are, else 1."""
    moves = [
        torch.full_like(own, float(place not in seen.absent))
        for place, own in enumerate(seen.parameters_given)
    ]
    return [layer.augmented().double() for layer in seen.layout.layers(moves)]
