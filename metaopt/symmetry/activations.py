"""Elementwise activations, with the properties that a symmetry depends on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional


class Activation(Protocol):
    """An elementwise activation sigma, with the properties that a symmetry depends on."""

    @property
    def inverse(self) -> Activation | None:
        """The inverse of sigma, or None where sigma is no bijection of the real line."""

    @property
    def homogeneous(self) -> bool:
        """Whether sigma(c z) = c sigma(z) for every c > 0."""

    def __call__(self, z: Tensor) -> Tensor:
        """Return sigma(z), entry by entry."""


@dataclass(frozen=True)
class LeakyReLU:
    """LeakyReLU: z for z > 0 and ``slope * z`` otherwise; slope 0 is ReLU.

    Attributes:
        slope: the factor of negative entries.
    """

    slope: float = 0.1

    @property
    def inverse(self) -> LeakyReLU | None:
        """The LeakyReLU with the inverse slope; None for ReLU, which has no inverse."""
        return LeakyReLU(1.0 / self.slope) if self.slope > 0 else None

    @property
    def homogeneous(self) -> bool:
        """Whether positive factors pass through, which is True."""
        return True

    def __call__(self, z: Tensor) -> Tensor:
        """Return LeakyReLU(z), entry by entry."""
        return functional.leaky_relu(z, self.slope)


@dataclass(frozen=True)
class Identity:
    """No activation: sigma(z) = z."""

    @property
    def inverse(self) -> Identity:
        """The identity itself."""
        return self

    @property
    def homogeneous(self) -> bool:
        """Whether positive factors pass through, which is True."""
        return True

    def __call__(self, z: Tensor) -> Tensor:
        """Return z."""
        return z


@dataclass(frozen=True)
class Elementwise:
    """An activation that is known only as a function; the action of eq. 79 takes any such one.

    Attributes:
        name: the name that reports use.
        function: the activation, on tensors of any shape. Two activations are equal if their names
            and functions are.
    """

    name: str
    function: Callable[[Tensor], Tensor] = field(repr=False, hash=False)
    inverse: None = field(default=None, init=False)
    homogeneous: bool = field(default=False, init=False)

    def __call__(self, z: Tensor) -> Tensor:
        """Return the activation of z, entry by entry."""
        return self.function(z.clone())  # the function may work in place


def _of_tanh(values: Tensor) -> Tensor:
    return values.square().neg_().add_(1)


def _of_sigmoid(values: Tensor) -> Tensor:
    return torch.addcmul(values, values, values, value=-1)


FROM_VALUES: tuple[tuple[object, Callable[[Tensor], Tensor]], ...] = (
    (torch.tanh, _of_tanh),
    (functional.tanh, _of_tanh),
    (nn.Tanh, _of_tanh),
    (torch.sigmoid, _of_sigmoid),
    (functional.sigmoid, _of_sigmoid),
    (nn.Sigmoid, _of_sigmoid),
)
"""Functions and classes whose derivative follows from the values, which autograd need not find."""


def _known(activation: Activation) -> Callable[[Tensor], Tensor] | None:
    function = getattr(activation, "function", None)
    known_as = getattr(function, "known_as", function)
    return next((own for known, own in FROM_VALUES if known is known_as), None)


def derivative(activation: Activation, at: Tensor) -> Tensor:
    """Return the derivative of an activation, entry by entry, detached.

    Args:
        activation: the activation sigma.
        at: points of any shape.
    """
    with torch.enable_grad():
        points = at.detach().requires_grad_()
        (gradients,) = torch.autograd.grad(activation(points).sum(), points)
    return gradients


def with_derivative(activation: Activation, at: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return an activation and its derivative, entry by entry, detached; None stands for 1.

    Args:
        activation: the activation sigma.
        at: points of any shape.
    """
    at = at.detach()
    if isinstance(activation, Identity):
        return at, None
    if isinstance(activation, LeakyReLU):
        slopes = torch.full_like(at, activation.slope).masked_fill_(at > 0, 1.0)
        return activation(at), slopes
    known = _known(activation)
    if known is not None:
        values = activation(at)
        return values, known(values)
    with torch.inference_mode(False), torch.enable_grad():
        points = (at.clone() if at.is_inference() else at).requires_grad_()
        values = activation(points)
        (slopes,) = torch.autograd.grad(values, points, torch.ones_like(values))
    return values.detach(), slopes
