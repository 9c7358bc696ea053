"""Physics-informed networks: the loss is how far a network is from solving an equation.

It has derivatives of the network in its inputs, which an optimizer sees through
``loss.backward()`` alone. What is reported is the error to the exact solution.

Source: Raissi, Perdikaris and Karniadakis (2019), J. Comput. Phys. 378.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from metaopt.tasks import Task
from studies.full_batch.problems import network

VISCOSITY = 0.1 / math.pi
NODES = 200  # of the quadrature of Burgers' solution


class Points(NamedTuple):
    """Where an equation is to hold.

    Attributes:
        inside: points inside of the domain, ``(n, coordinates)``.
        known: points whose value is given, ``(k, coordinates)``.
        values: there, ``(k, 1)``.
    """

    inside: Tensor
    known: Tensor
    values: Tensor


class Equation(Task):
    """A differential equation on points that a seed draws.

    Attributes:
        widths: of the network.
        weight: of the squared error at points whose value is given.
    """

    widths: ClassVar[tuple[int, ...]]
    weight: ClassVar[float] = 1.0

    @abstractmethod
    def points(self, generator: torch.Generator) -> Points:
        """Draw points.

        Args:
            generator: the source of randomness.
        """

    @abstractmethod
    def residual(self, x: Tensor, u: Tensor) -> Tensor:
        """Return what is 0 where the equation holds, ``(n, 1)``.

        Args:
            x: points, ``(n, coordinates)``.
            u: the network there, ``(n, 1)``, a function of x.
        """

    @abstractmethod
    def solution(self, x: Tensor) -> Tensor:
        """Return the exact solution, ``(n, 1)``.

        Args:
            x: points, ``(n, coordinates)``.
        """

    def model(self, seed: int) -> nn.Module:
        """Return the network. See :meth:`Task.model`."""
        return network(seed, self.widths)

    def batches(self, seed: int, split: str) -> Iterable[Points]:
        """Return one batch of points, others for what is held out. See :meth:`Task.batches`."""
        generator = torch.Generator().manual_seed(seed)
        stepped_on = self.points(generator)
        return [stepped_on if split == "train" else self.points(generator)]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean squared residual, and error where values are known.

        See :meth:`Task.loss`.
        """
        x = batch.inside.detach().requires_grad_()
        residual = self.residual(x, model(x)).square().mean()
        return residual + self.weight * functional.mse_loss(model(batch.known), batch.values)

    def metrics(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Return the "error", the mean squared one to the exact solution. See :meth:`Task.metrics`.

        Points inside of the domain count alone.
        """
        with torch.no_grad():
            return {"error": functional.mse_loss(model(batch.inside), self.solution(batch.inside))}


@final
class Poisson(Equation):
    """u'' = -4 pi^2 sin(2 pi x) on [0, 1] with u(0) = u(1) = 0, whose solution is sin(2 pi x)."""

    widths = (1, 32, 32, 1)
    weight = 100.0

    def points(self, generator: torch.Generator) -> Points:
        """Draw 64 points. See :meth:`Equation.points`."""
        ends = torch.tensor([[0.0], [1.0]])
        return Points(torch.rand(64, 1, generator=generator), ends, torch.zeros(2, 1))

    def residual(self, x: Tensor, u: Tensor) -> Tensor:
        """Return u'' + 4 pi^2 sin(2 pi x). See :meth:`Equation.residual`."""
        second = _derivative(_derivative(u, x), x)
        return second + (2 * math.pi) ** 2 * torch.sin(2 * math.pi * x)

    def solution(self, x: Tensor) -> Tensor:
        """Return sin(2 pi x). See :meth:`Equation.solution`."""
        return torch.sin(2 * math.pi * x)


@final
class Burgers(Equation):
    """u_t + u u_x = nu u_xx for x in [-1, 1] and t in [0, 1], with nu = 0.1 / pi.

    It starts at u = -sin(pi x), and is 0 at both ends.
    """

    widths = (2, 32, 32, 1)

    def points(self, generator: torch.Generator) -> Points:
        """Draw 256 points inside, 64 at the start and 32 at each end.

        See :meth:`Equation.points`.
        """

        def uniform(count: int, low: float = 0.0) -> Tensor:
            return low + (1 - low) * torch.rand(count, 1, generator=generator)

        x, at_start = uniform(256, -1.0), uniform(64, -1.0)
        inside = torch.cat((x, uniform(256)), dim=1)
        start = torch.cat((at_start, torch.zeros_like(at_start)), dim=1)
        ends = [torch.cat((torch.full((32, 1), end), uniform(32)), dim=1) for end in (-1.0, 1.0)]
        values = torch.cat((-torch.sin(math.pi * at_start), torch.zeros(64, 1)))
        return Points(inside, torch.cat((start, *ends)), values)

    def residual(self, x: Tensor, u: Tensor) -> Tensor:
        """Return u_t + u u_x - nu u_xx. See :meth:`Equation.residual`."""
        first = _derivative(u, x)
        second = _derivative(first[:, :1], x)[:, :1]
        return first[:, 1:] + u * first[:, :1] - VISCOSITY * second

    def solution(self, x: Tensor) -> Tensor:
        """Return the solution by the Cole-Hopf transform, with a Gauss-Hermite quadrature.

        See :meth:`Equation.solution`. Source: Basdevant et al. (1986), Computers & Fluids 14.
        """
        z, weight = np.polynomial.hermite.hermgauss(NODES)
        place, time = x.double().T.numpy()[..., None]
        y = place - np.sqrt(4 * VISCOSITY * time) * z
        log = np.log(weight) - np.cos(math.pi * y) / (2 * math.pi * VISCOSITY)
        each = np.exp(log - log.max(axis=1, keepdims=True))
        value = -(np.sin(math.pi * y) * each).sum(axis=1) / each.sum(axis=1)
        return torch.from_numpy(value).to(x.dtype).unsqueeze(1)


class Residuals(nn.Module):
    """A network that gives what an equation leaves, for an optimizer that looks at the output.

    The squares of what it gives sum to the loss of the equation.

    Args:
        equation: the equation.
        network: that is to solve it.
    """

    def __init__(self, equation: Equation, network: nn.Module) -> None:
        super().__init__()
        self.equation, self.network = equation, network

    def forward(self, inside: Tensor, known: Tensor, values: Tensor) -> Tensor:
        """Return the residuals and the errors at known points, ``(n + k, 1)``."""
        with torch.enable_grad():
            x = inside.detach().requires_grad_()
            residual = self.equation.residual(x, self.network(x))
        error = self.network(known) - values
        weights = (1 / residual.numel()) ** 0.5, (self.equation.weight / error.numel()) ** 0.5
        return torch.cat((weights[0] * residual, weights[1] * error))


@final
class GivenResiduals(Task):
    """A differential equation whose module gives the residuals, which the loss is the squares of.

    The loss has the same values and gradients as without.

    Args:
        equation: the equation.
    """

    def __init__(self, equation: Equation) -> None:
        self.equation = equation

    def model(self, seed: int) -> nn.Module:
        """Return the network with its equation. See :meth:`Task.model`."""
        return Residuals(self.equation, self.equation.model(seed))

    def batches(self, seed: int, split: str) -> Iterable[Points]:
        """Return the points. See :meth:`Task.batches`."""
        return self.equation.batches(seed, split)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the sum of squares. See :meth:`Task.loss`."""
        total: Tensor = model(*batch).square().sum()
        return total

    def metrics(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Return the "error" of the network. See :meth:`Task.metrics`."""
        return self.equation.metrics(model.get_submodule("network"), batch)


def _derivative(u: Tensor, x: Tensor) -> Tensor:
    """The derivative of each u in its own x, ``(n, coordinates)``, as a function of x."""
    (derivative,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    return derivative
