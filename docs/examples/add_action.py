"""A new group action: rescaling of the units of a network with quadratic activations.

For sigma(z) = z^2 and d > 0, sigma(d z) = d^2 sigma(z). So the output stays where a unit's incoming
weights and bias are multiplied by d and its outgoing weights are divided by d^2, for all data. No
action of the library does this: positive rescaling divides by d.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from metaopt import TeleportingOptimizer
from metaopt.symmetry import (
    ACTIONS,
    STEPS,
    Call,
    ClosedFormAction,
    Element,
    GradientAscent,
    Proposal,
    Site,
    SiteMatrices,
    Step,
)


@dataclass(frozen=True)
class Square:
    """sigma(z) = z^2, which has no inverse and is homogeneous of degree 2, not 1."""

    inverse: None = None
    homogeneous: bool = False

    def __call__(self, z: Tensor) -> Tensor:
        return z.square()


@final
class SquareAction(ClosedFormAction):
    """W_{m-1} <- D W_{m-1}, b_{m-1} <- D b_{m-1}, W_m <- W_m D^-2, D = diag(exp(t))."""

    group = "positive"
    exact_when = "the activation is the square"
    diagonal = True  # an element is t, (*batch, k), and not a matrix

    def max_samples(self, site: Site) -> float:
        """Return infinity where a square lies between the matrices: it is exact for all data."""
        return math.inf if site.between == Square() else 0

    def obstacle(self, site: Site) -> str | None:
        """Return why the action cannot act at another site."""
        return None if site.between == Square() else f"{site.between} is not the square"

    def propose(self, element: Element, matrices: SiteMatrices) -> Proposal:
        """Return both new matrices."""
        d = element.exponential()
        incoming = d.times(matrices.incoming[0])  # this is [W b], so the bias goes along
        outgoing = matrices.after(element.scaled(2.0).exponential(), 0)
        return Proposal([incoming], [outgoing], torch.ones_like(matrices.trusted))

    def transport(
        self, element: Element, site: Site, buffers: Mapping[str, Tensor], squares: bool = False
    ) -> dict[str, Tensor]:
        """Divide gradients where weights are multiplied, and the other way round."""
        d, d_squared = (element.scaled(f).exponential() for f in (1.0, 2.0))
        if squares:
            d, d_squared = d.squared(), d_squared.squared()
        moved = dict(buffers)
        (into,), (out_of,) = site.incoming, site.outgoing
        old = into.read_augmented(buffers)
        into.write_augmented(moved, d.dual_times(old.double()).to(old.dtype))
        old = out_of.read(buffers)
        out_of.write(moved, d_squared.dual_after(old.double()).to(old.dtype))
        return moved


class Quadratic(nn.Module):
    """One hidden layer of squares."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Rows to rows."""
        result: Tensor = self.out(torch.square(self.hidden(x)))
        return result


def square_step(call: Call) -> Step:
    """What lies between two layers, where the forward calls torch.square there."""
    return Step(call.label, "activation", Square(), homogeneous=False)


STEPS[torch.square] = square_step  # or the network would not be seen as a chain
ACTIONS.add("square", SquareAction)  # TeleportingOptimizer(..., action="square") knows it now


def gradient_norm(model: nn.Module, loss: Tensor) -> float:
    """||grad L||^2."""
    return sum(float(g.square().sum()) for g in torch.autograd.grad(loss, list(model.parameters())))


def main() -> dict[str, float]:
    """Teleport a quadratic network to a larger gradient; the loss stays."""
    torch.manual_seed(0)
    model, loss_fn = Quadratic(), nn.MSELoss()
    x, y = torch.randn(50, 6), torch.randn(50, 3)
    optimizer = TeleportingOptimizer(
        torch.optim.SGD(model.parameters(), 0.01),
        model,
        loss_fn,
        action="square",
        search=GradientAscent(iterations=20, initial_step=0.2, max_ratio=4.0),
        buffers="transport",
    )
    before = loss_fn(model(x), y)
    norm_before = gradient_norm(model, before)
    move = optimizer.teleport(x, y)
    after = loss_fn(model(x), y)
    return {
        "loss before": before.item(),
        "loss after": after.item(),
        "squared gradient norm before": norm_before,
        "squared gradient norm after": gradient_norm(model, after),
        "invariance error": float(move.invariance_error()),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)  # the tensors are tiny; more threads only wait for one another
    for name, value in main().items():
        print(f"{name}: {value:.6g}")
