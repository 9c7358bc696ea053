"""A new objective of a teleport: the smallest weights that compute the same function.

Rescaling the units of a ReLU network changes the norm of its weights and not its output. Where the
norm is least along that orbit, the weights into each hidden unit (with its bias) have the norm of
the weights out of it: the network is balanced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metaopt import TeleportingOptimizer
from metaopt.symmetry import (
    GradientAscent,
    LossFunction,
    Negated,
    Objective,
    Orbit,
    per_task_sum,
)


@dataclass(frozen=True)
class WeightNorm:
    """The squared norm ||w||^2 of the parameters that move.

    It asks the orbit how many dimensions of a parameter count tasks, so it has ``on``. An
    objective that needs no orbit is a function of the parameters and the loss.
    """

    def on(self, orbit: Orbit) -> Objective:
        """Return the objective for the points of ``orbit``."""

        def norm(parameters: Sequence[Tensor], loss: LossFunction) -> Tensor:
            """Return ``(*batch,)``, differentiable in the parameters; the loss is not needed."""
            return per_task_sum([p.square() for p in parameters], orbit.batch_dims(parameters))

        return norm


@torch.no_grad()
def imbalance(model: nn.Sequential) -> float:
    """Return the largest ratio of the squared norms on the two sides of a hidden unit."""
    incoming, outgoing = model[0], model[2]
    assert isinstance(incoming, nn.Linear)
    assert isinstance(outgoing, nn.Linear)
    into = incoming.weight.square().sum(1) + incoming.bias.square()
    out_of = outgoing.weight.square().sum(0)
    return float(torch.maximum(into / out_of, out_of / into).max())


def squared_norm(model: nn.Module) -> float:
    """Return ||w||^2."""
    return sum(float(p.detach().square().sum()) for p in model.parameters())


def main() -> dict[str, float]:
    """Balance a network by teleporting it down the norm of its weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    loss_fn = nn.MSELoss()
    x, y = torch.randn(50, 6), torch.randn(50, 3)
    with torch.no_grad():
        for parameter in model[0].parameters():
            parameter.mul_(5.0)
    optimizer = TeleportingOptimizer(
        torch.optim.SGD(model.parameters(), 0.01),
        model,
        loss_fn,
        action="rescaling",
        search=GradientAscent(iterations=200, initial_step=0.5, objective=Negated(WeightNorm())),
    )
    measured = {
        "loss before": loss_fn(model(x), y).item(),
        "squared norm before": squared_norm(model),
        "imbalance before": imbalance(model),
    }
    move = optimizer.teleport(x, y)
    return measured | {
        "loss after": loss_fn(model(x), y).item(),
        "squared norm after": squared_norm(model),
        "imbalance after": imbalance(model),
        "invariance error": float(move.invariance_error()),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)  # the tensors are tiny; more threads only wait for one another
    for name, value in main().items():
        print(f"{name}: {value:.6g}")
