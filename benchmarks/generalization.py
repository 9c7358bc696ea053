"""What section 4 costs: networks trained together against one by one, phi in batches against a loop
over its points, and how exact psi is.

python benchmarks/generalization.py [--models 100] [--steps 50] [--directions 200] [--threads 1]
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from command import parse
from interleaved import interleaved
from torch import Tensor, nn
from torch.nn import functional

from metaopt.measures.curvature import curvature, mean_curvature, random_elements
from metaopt.measures.directions import unit_directions
from metaopt.measures.sharpness import DISPLACEMENTS, sharpness
from metaopt.symmetry import LayerInput, chain_orbit, make_action
from metaopt.symmetry.chain import Activation, LayerChain

sys.path.insert(0, str(Path(__file__).parents[1]))  # studies/ is not installed

from studies.generalization.moves import module_of
from studies.generalization.networks import (
    ALONE,
    SLOPE,
    initial_weights,
    single,
    train_epoch,
)

SIZES = (784, 16, 10, 10)
MINIBATCH = 20


def one_by_one(models: list[nn.Sequential], x: Tensor, y: Tensor) -> None:
    """torch's own SGD on each, the same minibatches."""
    for model in models:
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        for images, labels in zip(
            torch.split(x, MINIBATCH), torch.split(y, MINIBATCH), strict=True
        ):
            optimizer.zero_grad()
            functional.cross_entropy(model(images), labels).backward()
            optimizer.step()


@torch.no_grad()
def looped(model: nn.Module, x: Tensor, y: Tensor, directions: list[Tensor]) -> float:
    """phi, a point after another."""
    parameters = list(model.parameters())
    origin = [parameter.clone() for parameter in parameters]
    total = 0.0
    for t in DISPLACEMENTS:
        for index in range(len(directions[0])):
            for parameter, start, direction in zip(parameters, origin, directions, strict=True):
                parameter.copy_(start + t * direction[index])
            total += float(functional.cross_entropy(model(x), y))
    for parameter, start in zip(parameters, origin, strict=True):
        parameter.copy_(start)
    return total / len(DISPLACEMENTS) / len(directions[0])


@dataclass(frozen=True)
class Frozen:
    """LeakyReLU with its slopes as they are at the start: the same curve until a feature turns."""

    slopes: Tensor
    homogeneous = False

    @property
    def inverse(self) -> Frozen:
        return Frozen(1 / self.slopes)

    def __call__(self, z: Tensor) -> Tensor:
        return self.slopes * z


def psi_error(chain: LayerChain, weights: list[Tensor], x: Tensor, curves: int) -> float:
    """Of psi against differences of sixth order, relative, the least over their steps."""
    wide, h0 = [weight.double() for weight in weights], x.mT.double()
    action, generator = make_action("post_activation"), torch.Generator().manual_seed(0)
    orbit = chain_orbit(chain, wide, LayerInput(h0), action)
    elements = random_elements(orbit, wide, curves, generator)
    psi = float(mean_curvature(orbit, wide, elements))
    frozen: list[Activation] = []
    for layer, activation in zip(chain.layers(wide), chain.activations, strict=True):
        z = layer(h0)
        h0 = activation(z)
        frozen.append(Frozen(torch.where(z > 0, 1.0, SLOPE)) if len(frozen) < 2 else activation)
    straight = LayerChain(tuple(frozen), chain.biased)
    smooth = chain_orbit(straight, wide, LayerInput(x.mT.double()), action)
    first = {-3: -1, -2: 9, -1: -45, 1: 45, 2: -9, 3: 1}
    second = {-3: 2, -2: -27, -1: 270, 0: -490, 1: 270, 2: -27, 3: 2}
    errors = []
    for h in (1e-4, 3e-4, 1e-3, 3e-3):
        total = 0.0
        for element in elements:
            at = {
                k: smooth.move(wide, smooth.elements(wide, [k * h * t for t in element])).parameters
                for k in range(-3, 4)
            }
            velocities, bends = (
                [sum(c * at[k][i] for k, c in row.items()) / scale for i in range(len(wide))]
                for row, scale in ((first, 60 * h), (second, 180 * h * h))
            )
            total += float(curvature(velocities, bends))
        errors.append(abs(total / curves / psi - 1))
    return min(errors)


def main() -> None:
    options = parse(
        __doc__, models=100, steps=50, images=200, directions=200, curves=10, repeats=7, threads=1
    )
    generator = torch.Generator().manual_seed(0)
    count = MINIBATCH * options.steps
    x = torch.rand(count, SIZES[0], generator=generator)
    y = torch.randint(0, 10, (count,), generator=generator)
    weights = initial_weights(range(options.models), SIZES)
    models = [module_of(own) for own in single(weights)]
    together = interleaved(
        lambda: one_by_one(models, x, y),
        lambda: train_epoch(weights, x, y, torch.arange(count), MINIBATCH, 0.01),
        options.repeats,
    )
    few, labels = x[: options.images], y[: options.images]
    directions = unit_directions(list(models[0].parameters()), options.directions, generator)
    phi = interleaved(
        lambda: looped(models[0], few, labels, directions),
        lambda: sharpness(
            models[0], functional.cross_entropy, few, labels, generator,
            directions=options.directions,
        ),
        options.repeats,
    )  # fmt: skip
    error = psi_error(ALONE, next(single(weights)), few, options.curves)
    result = {
        "one by one / together": together,
        "loop over points / phi": phi,
        "psi_relative_error": error,
    }
    print(json.dumps({"benchmark": "generalization", **vars(options), **result}))


if __name__ == "__main__":
    main()
