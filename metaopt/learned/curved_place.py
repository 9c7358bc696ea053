"""The place where a step of learned whitening begins, with the curvature of the loss there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from metaopt.learned.bases import Bases
from metaopt.learned.judgement import Judgement
from metaopt.learned.kronecker import TINY, spread, with_penalties
from metaopt.learned.network_pass import Derivatives, NetworkPass
from metaopt.learned.observation import Observation, SeenLoss
from metaopt.learned.place import PAST, SLOPES, Place, computed_anew
from metaopt.learned.refinement import Step, System
from metaopt.learned.subspace import minimum, model_of
from metaopt.output_loss import OutputLoss


@final
@dataclass(frozen=True)
class CurvedPlace:
    """A place, with the gradient and the curvature of each layer.

    Steps and directions have coefficients in the bases of the curvature.

    Attributes:
        along: the derivatives of the output there.
        kind: the loss as a function of the output.
        bases: of the layers.
        coefficients: of the last steps and of the gradient, ``(steps + 1, *batch, out, in + 1)``
            of each layer.
        curvatures: of the coefficients of each layer, with what penalties add.
        penalties: the curvature of penalties at each entry; None without any.
        moving: masks of the entries that move; None where all do.
    """

    along: Derivatives
    kind: OutputLoss
    bases: Bases
    coefficients: Sequence[Tensor]
    curvatures: Sequence[Tensor]
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
        coefficients = [
            f.into(torch.cat((rows[:PAST], g.unsqueeze(0))))
            for f, rows, g in zip(factors, place.matrices, slope, strict=True)
        ]
        penalties = place.penalties() if known.penalised else None
        curvatures = with_penalties(factors, penalties)
        return cls(
            at.in_bases(factors),
            loss.kind,
            Bases(factors, [own.shape for own in curvatures]),
            coefficients,
            curvatures,
            penalties,
            _moving(seen) if seen.absent else None,
        )

    @property
    def batch(self) -> torch.Size:
        """The dimensions of tasks."""
        return self.bases.batch

    @cached_property
    def means(self) -> list[Tensor]:
        """The mean curvature of each layer, ``(*batch,)``."""
        return [k.mean(dim=(-2, -1)) for k in self.curvatures]

    def row(self, number: int) -> Tensor:
        """Return coefficients as one row, ``(*batch, coefficients)``.

        Args:
            number: of the last step, or -1 for the gradient.
        """
        return self.bases.row([own[number] for own in self.coefficients])

    def matrices(self, row: Tensor) -> list[Tensor]:
        """Return the step of each layer, ``(*batch, out, in + 1)``; 0 where nothing moves.

        Args:
            row: its coefficients, ``(*batch, coefficients)``.
        """
        found = self.bases.back(row)
        if self.moving is None:
            return found
        return [own * mask for own, mask in zip(found, self.moving, strict=True)]

    def directions(self, damped: Sequence[Tensor]) -> list[Tensor]:
        """Return all directions of each layer, ``(*batch, directions, out, in + 1)``.

        They are those that are given and the last steps; with penalties the Newton step, too, whose
        curvature they bound from below.

        Args:
            damped: ``(dampings, *batch, out, in + 1)`` of each layer.
        """
        found = []
        for layer, own in enumerate(damped):
            parts = [own, self.coefficients[layer][:PAST]]
            if self.penalties is not None:
                newton = -self.coefficients[layer][-1] / (self.curvatures[layer] + TINY)
                parts.append(newton.unsqueeze(0))
            found.append(torch.cat(parts))
        if self.moving is not None:
            found = self.bases.scaled_parts(found, self.moving)
        return [own.movedim(0, -3) for own in found] if self.batch else found

    def minimum(self, directions: Sequence[Tensor], nu: Tensor) -> Step:
        """Return the step to the minimum of the damped model along directions.

        The meta-gradient goes through the directions and through nu.

        Args:
            directions: of each layer.
            nu: the damping of each task, ``(tasks,)``.
        """
        penalised = None
        if self.penalties is not None:
            leading = [own.detach().movedim(-3, 0) for own in directions]
            found = self.bases.scaled_parts(leading, self.penalties)
            penalised = [own.movedim(0, -3) for own in found]
        slope = [own[-1] for own in self.coefficients]
        model = model_of(self.along, directions, slope, self.means, self.kind, penalised)
        c = minimum(model, spread(nu, self.batch, model.product))
        along = [
            (part.unsqueeze(-2) @ own.flatten(start_dim=-2)).squeeze(-2)
            for own, part in zip(directions, c.chunk(len(directions), dim=-1), strict=True)
        ]
        jd = c.detach().unsqueeze(-2) @ model.tangents
        return Step(torch.cat(along, dim=-1), jd.view(self.along.outputs.shape))

    def system(self, nu: Tensor) -> System:
        """Return the linear system whose solution is the minimum over all weights.

        Args:
            nu: the damping of each task, ``(tasks,)``.
        """
        own = spread(nu.detach(), self.batch, self.curvatures[0])
        damping = [
            (own * mean[..., None, None]).expand_as(k)
            for k, mean in zip(self.curvatures, self.means, strict=True)
        ]
        bases = self.bases
        curvature, slope = bases.row(self.curvatures), self.row(-1)
        return System(
            self.along,
            bases,
            self.kind,
            slope,
            curvature,
            bases.row(damping),
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
