"""The place where a step of learned whitening begins, with its gradients and the last steps.

Weights, gradients and steps are rows over all coordinates, in the order of the parameters, and the
augmented weights of the layers are cut out of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metaopt.learned.kronecker import norm, split, spread
from metaopt.learned.network_pass import NetworkPass
from metaopt.learned.observation import Observation, flatten, task_rows, unflatten
from metaopt.output_loss import OutputLoss
from metaopt.symmetry.chain import Layer

PAST = 2  # last steps that are directions too
LAST, KEPT, REMEMBERED, NOW, SLOPES = 0, PAST, PAST + 1, PAST + 2, PAST + 3  # rows of a place

CLOSE = 0.01  # of a gradient, to what it is computed to be anew
EXPLAINED = 0.05  # of the gradient, for what the output does not explain


class Place(NamedTuple):
    """The place where a step begins, which may be where the last one began; all in float64.

    Attributes:
        layers: the weights.
        matrices: rows of augmented weights of each layer, ``(rows, *batch, out, in + 1)``. They
            are the last steps; where the last step began, with the gradient there; and where this
            one begins, with the gradient there, in units of the loss.
    """

    layers: Sequence[Layer]
    matrices: Sequence[Tensor]

    @classmethod
    def of(cls, rows: Tensor, seen: Observation) -> Place:
        """Return the place of rows in the order of the parameters.

        Args:
            rows: ``(rows, coordinates)``.
            seen: what is seen.
        """
        pieces = [
            own.view(len(rows), *p.shape)
            for own, p in zip(
                rows.split_with_sizes([p.numel() for p in seen.parameters], dim=1),
                seen.parameters,
                strict=True,
            )
        ]
        matrices = [layer.augmented() for layer in seen.layout.layers(pieces)]
        layers = [split(own[NOW], like) for own, like in zip(matrices, seen.layers, strict=True)]
        return cls(layers, matrices)

    def row(self, number: int) -> list[Tensor]:
        """Return a row as augmented weights, ``(*batch, out, in + 1)`` each.

        Args:
            number: of the row.
        """
        return [own[number] for own in self.matrices]


def by_coordinate(flags: Sequence[bool], batch: torch.Size, seen: Observation) -> Tensor:
    """Return a flag of each task for each coordinate, in the order of the parameters.

    Args:
        flags: of the tasks.
        batch: the dimensions of tasks.
        seen: what is seen.
    """
    of_tasks = torch.tensor(flags, device=seen.parameters[0].device)
    if len(flags) == 1:
        return of_tasks
    return flatten([spread(of_tasks, batch, p).expand_as(p) for p in seen.parameters])


@torch.no_grad()
def crossed(rows: Tensor, seen: Observation) -> list[float]:
    """Return the change of any loss between two weights, from the gradients at both.

    It is the trapezoid rule.

    Args:
        rows: those of a place.
        seen: what is seen.
    """
    terms = 0.5 * (rows[REMEMBERED] + rows[SLOPES]) * (rows[NOW] - rows[KEPT])
    changes = task_rows(unflatten(terms, seen.parameters), seen.batch_dims).sum(dim=1)
    own: list[float] = changes.tolist()
    return own


@torch.no_grad()
def explained(place: Place, at: NetworkPass, output_gradient: Tensor) -> float:
    """Return 1 where the output explains the gradient of the weights, else 0.

    Args:
        place: where the step begins.
        at: the forward pass there.
        output_gradient: of the loss in the outputs, ``(*batch, out, samples)``.
    """
    own = flatten(at.gradients(output_gradient))
    gap = flatten(place.row(SLOPES)).sub_(own)
    gap_size, size = torch.stack([torch.linalg.vector_norm(row) for row in (gap, own)]).tolist()
    return float(gap_size <= EXPLAINED * size)


def computed_anew(place: Place, at: NetworkPass, loss: OutputLoss, targets: Tensor) -> list[Tensor]:
    """Return the gradients from the targets, where those that are given are their rounding.

    In float32 the gradient p - y of a cross entropy is rounding once p is within 1e-7 of y. A
    gradient that somebody has changed, such as by clipping, stays as it is.

    Args:
        place: where the step begins.
        at: the forward pass there.
        loss: of the outputs.
        targets: of the outputs, ``(*batch, out, samples)``.
    """
    anew = at.gradients(loss.gradient(at.outputs, targets))
    kept = []
    for given, own, rounded in zip(place.row(SLOPES), anew, at.rounding(), strict=True):
        near = (norm(given - own) <= CLOSE * norm(own) + rounded)[..., None, None]
        kept.append(torch.where(near, own, given))
    return kept
