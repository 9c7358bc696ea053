"""What a teleport maximises along the orbit; each task of a batch has its own value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from metaopt.errors import UserError
from metaopt.symmetry.metric import adaptive_metric
from metaopt.symmetry.orbit import Orbit

LossFunction = Callable[[Sequence[Tensor]], Tensor]
"""Parameters, in order -> losses ``(*batch,)``; that of a task depends on its own weights alone."""

Objective = Callable[[Sequence[Tensor], LossFunction], Tensor]
"""Parameters at g.w, and the loss -> value ``(*batch,)``, differentiable in the parameters.

What else it takes (a metric, the directions of a sharpness) is its own and frozen, as a search
compares its values from one call to the next. One that must know the orbit is a :class:`OfOrbit`.
"""


@runtime_checkable
class OfOrbit(Protocol):
    """An objective that becomes one on an orbit, which a search does with it."""

    def on(self, orbit: Orbit) -> Objective:
        """Return the objective for the points of ``orbit``."""


def on_orbit(objective: Objective | OfOrbit, orbit: Orbit) -> Objective:
    """Return the objective as it is evaluated on the orbit."""
    return objective.on(orbit) if isinstance(objective, OfOrbit) else objective


def gradient_norm(parameters: Sequence[Tensor], loss: LossFunction) -> Tensor:
    """Return the squared gradient norm ||grad L||^2, ``(*batch,)`` (eq. 3)."""
    losses, gradients = value_and_gradient(parameters, loss)
    return per_task_sum([g.square() for g in gradients], losses.dim())


@dataclass(frozen=True, eq=False)
class MetricNorm:
    """g^T A g, ``(*batch,)``: the rate at which an adaptive optimizer's step lowers L (eq. 99).

    Printed as ||g||_A; with ||g||_A = sqrt(g^T A g) what holds is its square, of the same argmax.

    Attributes:
        metric: the diagonal of A, one tensor a parameter and of its shape; it stays as it is.
    """

    metric: Sequence[Tensor]

    @classmethod
    def of(
        cls,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor] | None = None,
    ) -> MetricNorm:
        """Build the norm with the metric of Adagrad, RMSprop or Adam as it is now.

        See :func:`adaptive_metric`.
        """
        return cls(tuple(adaptive_metric(optimizer, parameters, gradients)))

    def __call__(self, parameters: Sequence[Tensor], loss: LossFunction) -> Tensor:
        """Return g^T A g, ``(*batch,)``, of parameters in the order of the metric.

        Raises:
            UserError: if the parameters have other shapes than the metric.
        """
        metric, own = ([tuple(t.shape) for t in side] for side in (self.metric, parameters))
        if metric != own:
            raise UserError(
                f"expected parameters of the metric's shapes {metric}, got {own}: build it from "
                f"the parameters that move"
            )
        losses, gradients = value_and_gradient(parameters, loss)
        terms = [a * g.square() for a, g in zip(self.metric, gradients, strict=True)]
        return per_task_sum(terms, losses.dim())


@dataclass(frozen=True)
class Negated:
    """The negative of an objective: a search that climbs it descends the objective.

    Attributes:
        objective: what is negated.
    """

    objective: Objective | OfOrbit

    def on(self, orbit: Orbit) -> Negated:
        """Return the negated objective for the points of ``orbit``."""
        return Negated(on_orbit(self.objective, orbit))

    def __call__(self, parameters: Sequence[Tensor], loss: LossFunction) -> Tensor:
        """Return the negated value, ``(*batch,)``.

        Raises:
            UserError: if the objective must know its orbit and was not given one.
        """
        if isinstance(self.objective, OfOrbit) and not callable(self.objective):
            raise UserError(
                f"expected an objective on an orbit, got {type(self.objective).__name__}: use on()"
            )
        return -self.objective(parameters, loss)


def value_and_gradient(
    parameters: Sequence[Tensor], loss: LossFunction
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return L ``(*batch,)`` and its gradients, one for each parameter, differentiable in them."""
    # Views: where a layer depends on an earlier one, the inner gradient must not lead there.
    own = [p.view_as(p) if p.requires_grad else p.detach().requires_grad_() for p in parameters]
    losses = loss(own)
    return losses, torch.autograd.grad(losses.sum(), own, create_graph=True)


def per_task_sum(tensors: Sequence[Tensor], batch_dims: int) -> Tensor:
    """Return the sum over all entries of all tensors of each task, ``(*batch,)``."""
    sums = [t.unsqueeze(-1).flatten(start_dim=batch_dims).sum(-1) for t in tensors]
    return torch.stack(sums).sum(dim=0)
