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
from metaopt.learned.without_graph import without_graph
from metaopt.output_loss import OutputLoss
from metaopt.symmetry.chain import Layer

PAST = 2  # last steps that are directions too
OF_A_POINT = 3  # rows: the weights, the gradient, and the part of it that penalties have
LAST, KEPT, NOW = 0, PAST, PAST + OF_A_POINT  # rows of a place
REMEMBERED, SLOPES = KEPT + 1, NOW + 1  # the gradients
BEFORE, BESIDE = KEPT + 2, NOW + 2  # those of penalties

CLOSE = 0.01  # of a gradient, to what it is computed to be anew
EXPLAINED = 0.05  # of the gradient, for what the output does not explain
CLIPPED = 1e-3  # of an entry that was clipped, by which it may be larger
LEAST = 1e-5  # of the gradient, for a penalty
OUTWARDS = 0.9  # of <r, w> over the sum of |r w|, for a penalty
NEAR_ZERO = 0.01  # of the root mean square of weights, below which no curvature is larger


class Place(NamedTuple):
    """The place where a step begins, which may be where the last one began; all in float64.

    Attributes:
        layers: the weights.
        matrices: rows of augmented weights of each layer, ``(rows, *batch, out, in + 1)``. They
            are the last steps; where the last step began, with the gradient there and the part
            of it that penalties have; and the same where this one begins, in units of the loss.
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

    def penalties(self) -> list[Tensor]:
        """Return the curvature of penalties beside the loss, which is 0 without any.

        A penalty with gradient r has the curvature r / w, entry by entry. A multiple of w^2 has it,
        and a penalty that is less steep, such as |w|, lies below the parabola of this curvature
        that touches it (Hunter and Lange, 2004).

        Returns:
            ``(*batch, out, in + 1)`` of each layer.
        """
        found = []
        for r, w in zip(self.row(BESIDE), self.row(NOW), strict=True):
            least = NEAR_ZERO * w.square().mean(dim=(-2, -1), keepdim=True).sqrt()
            steep = torch.where(r * w > 0, r / torch.where(w == 0, 1.0, w), 0.0)
            most = torch.where(w.abs() >= least, steep, 0.0).amax(dim=(-2, -1), keepdim=True)
            found.append(torch.minimum(steep, most))
        return found


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


@without_graph
def changes(rows: Tensor, seen: Observation) -> tuple[list[float], list[float]]:
    """Return the changes of any loss, and of penalties, from their gradients at two weights.

    It is the trapezoid rule.

    Args:
        rows: those of a place.
        seen: what is seen.
    """
    means = 0.5 * (rows[REMEMBERED:NOW] + rows[SLOPES:])
    terms = means * (rows[NOW] - rows[KEPT])
    found = [
        task_rows(unflatten(own, seen.parameters), seen.batch_dims).sum(dim=1) for own in terms
    ]
    whole, beside = torch.stack(found).tolist()
    return whole, beside


class Explained(NamedTuple):
    """What the output of a network explains of the gradient of its weights.

    Attributes:
        beside: the gradient of penalties, in the order of the parameters; 0 without any.
        whole: 1 where output and penalties explain the gradient, which may be clipped, else 0.
        cosine: between the gradient and what is explained of it; 1 where that is all.
    """

    beside: Tensor
    whole: float
    cosine: float = 1.0


@without_graph
def explained(
    seen: Observation, at: NetworkPass, slopes: Tensor, output_gradient: Tensor
) -> Explained:
    """Return what the output explains of the gradient of one network.

    What it leaves is that of penalties if it points away from 0 at nearly all weights. A gradient
    of which each entry lies between 0 and what is explained was clipped.

    Args:
        seen: what is seen.
        at: the forward pass.
        slopes: the gradient, in the order of the parameters.
        output_gradient: of the loss in the outputs, ``(out, samples)``.
    """
    layers = [split(g, w) for g, w in zip(at.gradients(output_gradient), at.layers, strict=True)]
    own, weights = (flatten(seen.layout.parameters(ws)) for ws in (layers, at.layers))
    rest = slopes - own
    for place, part in enumerate(unflatten(rest, seen.parameters)):
        if place in seen.absent:
            part.zero_()
    along = rest * weights
    numbers = torch.stack((rest.norm(), own.norm(), along.sum(), along.abs().sum())).tolist()
    size, whole, outwards, most = numbers
    if size > LEAST * whole and outwards > OUTWARDS * most:
        return Explained(rest, 1.0)
    between = torch.minimum(torch.maximum(slopes, own.clamp(max=0)), own.clamp(min=0))
    off = (slopes - between).abs() - CLIPPED * own.abs() - LEAST * whole
    if size <= EXPLAINED * whole or not bool((off > 0).any()):
        return Explained(torch.zeros_like(rest), 1.0)
    lengths = (rest + own).norm() * own.norm()
    cosine = float(((rest + own) * own).sum() / lengths) if lengths else 0.0
    return Explained(torch.zeros_like(rest), 0.0, cosine)


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
