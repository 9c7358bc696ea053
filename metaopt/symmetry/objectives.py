"""Objectives: the quantities that a teleport maximises along an orbit, one value for each task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from metaopt.errors import UserError, shown
from metaopt.symmetry.functional import check_differentiable_twice
from metaopt.symmetry.metric import adaptive_metric
from metaopt.symmetry.orbit import Orbit

LossFunction = Callable[[Sequence[Tensor]], Tensor]
"""A function from parameters, in order, to losses ``(*batch,)``.

The loss of a task depends only on the weights of that task."""

Objective = Callable[[Sequence[Tensor], LossFunction], Tensor]
"""A function from (parameters at g.w, loss function) to values ``(*batch,)``.

It is differentiable in the parameters. What else it depends on, such as a metric or the directions
of a sharpness, is its own and constant, since a search compares its values from one call to the
next. An objective that must know the orbit is an :class:`OfOrbit`."""


@runtime_checkable
class OfOrbit(Protocol):
    """An objective that must be told the orbit before it can be evaluated."""

    def on(self, orbit: Orbit) -> Objective:
        """Return the objective for the points of ``orbit``."""


def on_orbit(objective: Objective | OfOrbit, orbit: Orbit) -> Objective:
    """Return an objective that can be evaluated on an orbit.

    Args:
        objective: an objective, or one that must be told the orbit.
        orbit: the orbit.
    """
    return objective.on(orbit) if isinstance(objective, OfOrbit) else objective


class GradientForm(NamedTuple):
    """An objective as a quadratic form of the gradient, sign * sum(metric * g^2).

    Attributes:
        sign: 1, or -1 for what a search lowers.
        metric: one tensor for each parameter and of its shape; None for ones.
    """

    sign: float = 1.0
    metric: Sequence[Tensor] | None = None

    def value(self, gradients: Sequence[Tensor], batch_dims: int) -> Tensor:
        """Return the value, ``(*batch,)``.

        Args:
            gradients: one for each parameter, in order.
            batch_dims: how many leading dimensions count tasks.

        Raises:
            UserError: if the gradients have other shapes than the metric.
        """
        squares = [g.square() for g in gradients]
        if self.metric is not None:
            self._check(gradients)
            squares = [a * square for a, square in zip(self.metric, squares, strict=True)]
        return self.sign * per_task_sum(squares, batch_dims)

    def roots(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Return sqrt(metric) * g, whose squared norm is the value without its sign.

        The arguments and errors are those of :meth:`value`.
        """
        if self.metric is None:
            return list(gradients)
        self._check(gradients)
        return [a.sqrt() * g for a, g in zip(self.metric, gradients, strict=True)]

    def _check(self, gradients: Sequence[Tensor]) -> None:
        metric, own = ([tuple(t.shape) for t in side] for side in (self.metric or (), gradients))
        if metric != own:
            raise UserError(
                f"expected parameters of the metric's shapes {shown(metric)}, got {shown(own)}: "
                f"build it from the parameters that move"
            )


@runtime_checkable
class OfGradient(Protocol):
    """An objective that is a quadratic form of the gradient, and so known where the gradient is."""

    def form(self) -> GradientForm | None:
        """Return the form; None if it is none."""


def form_of(objective: Objective) -> GradientForm | None:
    """Return an objective as a quadratic form of the gradient; None if it does not say so.

    Args:
        objective: the objective, on its orbit.
    """
    if objective is gradient_norm:
        return GradientForm()
    return objective.form() if isinstance(objective, OfGradient) else None


def gradient_norm(parameters: Sequence[Tensor], loss: LossFunction) -> Tensor:
    """Return the squared gradient norm ||grad L||^2, ``(*batch,)`` (eq. 3).

    Args:
        parameters: in order.
        loss: the losses as a function of the parameters.
    """
    losses, gradients = value_and_gradient(parameters, loss)
    return GradientForm().value(gradients, losses.dim())


@dataclass(frozen=True, eq=False)
class MetricNorm:
    """The rate at which a step of an adaptive optimizer lowers the loss, g^T A g (eq. 99).

    Here g is the gradient and A the metric. The paper prints ||g||_A. With ||g||_A = sqrt(g^T A g)
    its square is the rate, and both are largest at the same point.

    Attributes:
        metric: the diagonal of A, one tensor for each parameter and of its shape; it is not
            changed.
    """

    metric: Sequence[Tensor]

    @classmethod
    def of(
        cls,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor] | None = None,
    ) -> MetricNorm:
        """Build the norm with the current metric of an Adagrad, RMSprop or Adam.

        The arguments are those of :func:`adaptive_metric`.
        """
        return cls(tuple(adaptive_metric(optimizer, parameters, gradients)))

    def form(self) -> GradientForm:
        """Return the metric as a form. See :class:`OfGradient`."""
        return GradientForm(metric=self.metric)

    def __call__(self, parameters: Sequence[Tensor], loss: LossFunction) -> Tensor:
        """Return g^T A g, ``(*batch,)``.

        Args:
            parameters: in the order of the metric.
            loss: the losses as a function of the parameters.

        Raises:
            UserError: if the parameters have other shapes than the metric.
        """
        losses, gradients = value_and_gradient(parameters, loss)
        return self.form().value(gradients, losses.dim())


def check_objective(objective: object) -> None:
    """Check that an object is an objective.

    Args:
        objective: the object.

    Raises:
        UserError: if it cannot be called, and is no :class:`OfOrbit`.
    """
    if isinstance(objective, type) or not (callable(objective) or isinstance(objective, OfOrbit)):
        raise UserError(
            f"expected an objective, a function of the parameters and the loss function, got "
            f"{shown(objective)}: leave it out for the squared gradient norm"
        )


@dataclass(frozen=True)
class Negated:
    """The negative of an objective, so that a search lowers the objective.

    Attributes:
        objective: the objective to lower.
    """

    objective: Objective | OfOrbit

    def __post_init__(self) -> None:
        check_objective(self.objective)

    def on(self, orbit: Orbit) -> Negated:
        """Return the negated objective for the points of ``orbit``."""
        return Negated(on_orbit(self.objective, orbit))

    def form(self) -> GradientForm | None:
        """Return the negated form of the objective, if it has one. See :class:`OfGradient`."""
        form = form_of(self.objective) if callable(self.objective) else None
        return None if form is None else form._replace(sign=-form.sign)

    def __call__(self, parameters: Sequence[Tensor], loss: LossFunction) -> Tensor:
        """Return the negated value, ``(*batch,)``.

        Args:
            parameters: in order.
            loss: the losses as a function of the parameters.

        Raises:
            UserError: if the objective must know its orbit and was not told it.
        """
        if isinstance(self.objective, OfOrbit) and not callable(self.objective):
            raise UserError(
                f"expected an objective on an orbit, got {type(self.objective).__name__}: use on()"
            )
        return -self.objective(parameters, loss)


def value_and_gradient(
    parameters: Sequence[Tensor], loss: LossFunction, create_graph: bool = True
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the losses ``(*batch,)``, and their gradients, which can be differentiated again.

    Args:
        parameters: in order.
        loss: the losses as a function of the parameters.
        create_graph: False if the gradients need not be differentiated again, which is cheaper.

    Returns:
        The losses, and one gradient for each parameter.
    """
    # Views: where a layer depends on an earlier one, the inner gradient must not lead there.
    own = [p.view_as(p) if p.requires_grad else p.detach().requires_grad_() for p in parameters]
    losses = loss(own)
    if create_graph:
        check_differentiable_twice(losses, own)
    # A parameter that the loss does not depend on has a gradient of zeros.
    gradients = torch.autograd.grad(
        losses.sum(), own, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return losses, gradients


def first_order(
    parameters: Sequence[Tensor], loss: LossFunction
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the losses and their gradients, detached, which cannot be differentiated again.

    Args:
        parameters: in order.
        loss: the losses as a function of the parameters.
    """
    with torch.enable_grad():
        losses, gradients = value_and_gradient(parameters, loss, create_graph=False)
    return losses.detach(), gradients


def per_task_sum(tensors: Sequence[Tensor], batch_dims: int) -> Tensor:
    """Return for each task the sum of all entries of all tensors, ``(*batch,)``.

    Args:
        tensors: each ``(*batch, ...)``.
        batch_dims: how many leading dimensions count tasks.
    """
    sums = [t.unsqueeze(-1).flatten(start_dim=batch_dims).sum(-1) for t in tensors]
    return torch.stack(sums).sum(dim=0)
