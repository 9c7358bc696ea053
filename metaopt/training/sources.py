"""Where training and validation problems come from: one table of sources."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from metaopt.tasks import FAMILIES, MinibatchFamily, TaskFamily, check_seeds
from metaopt.tasks.seeds import TRAINING
from metaopt.training.mixture import Drawn, draw_problems, integer, one_of

if TYPE_CHECKING:  # the spec checks its ``problems`` against the table below
    from metaopt.training.spec import TrainingSpec

MINIBATCH_VALIDATION: dict[str, MinibatchFamily] = {
    "classification": MinibatchFamily(),
    "images": MinibatchFamily(input=128, hidden=16, depth=3, decay=1.0, minibatch=20, noise=0.0),
    "regression": MinibatchFamily("regression", hidden=32, output=4, activation="tanh"),
    "residual": MinibatchFamily(
        "regression", input=16, hidden=24, output=3, depth=5, residual=True, minibatch=64
    ),
}
"""By name, for optimizers that are trained on minibatches."""


@dataclass(frozen=True)
class Source:
    """Problems of one kind.

    Attributes:
        draw: the next batch to train on.
        validation: (family, how many problems) each.
        smoothing: a validation loss is the mean over this fraction of the steps before it.
    """

    draw: Callable[[TrainingSpec, torch.Generator], Drawn]
    validation: Callable[[TrainingSpec], list[tuple[TaskFamily, int]]]
    smoothing: float = 0.0


def draw_minibatches(spec: TrainingSpec, generator: torch.Generator) -> Drawn:
    """``batch_size`` networks of one architecture, drawn from a wide mixture."""

    def log_uniform(low: float, high: float) -> float:
        unit = float(torch.rand((), generator=generator))
        return float(low * (high / low) ** unit)

    kind = one_of(("classification", "regression"), generator)
    family = MinibatchFamily(
        kind=kind,
        input=round(log_uniform(8, 128)),
        hidden=round(log_uniform(8, 48)),
        output=round(log_uniform(2, 10) if kind == "classification" else log_uniform(1, 8)),
        depth=one_of((2, 3, 3, 4, 5), generator),
        samples=1024,
        minibatch=one_of((8, 16, 20, 32, 64, 128), generator),
        activation=one_of(("relu", "leaky_relu", "tanh", "gelu"), generator),
        residual=one_of((False, True), generator),
        weight_scale=log_uniform(0.5, 2.0),
        data_scale=log_uniform(0.5, 2.0),
        decay=log_uniform(0.1, 1.2),
        noise=log_uniform(0.01, 0.5),
    )
    seeds = [integer(generator, TRAINING.start, 2**53) for _ in range(spec.batch_size)]
    return Drawn(family, check_seeds(seeds, "training"))


def regression_validation(spec: TrainingSpec) -> list[tuple[TaskFamily, int]]:
    """The reference family, and a quarter as many of each of the others."""
    count = spec.validation_problems
    others = [replace(FAMILIES[name], loss=spec.loss) for name in spec.validation_families]
    return [(spec.reference, count), *((family, max(1, count // 4)) for family in others)]


def minibatch_validation(spec: TrainingSpec) -> list[tuple[TaskFamily, int]]:
    """As many of each."""
    return [(family, spec.validation_problems) for family in MINIBATCH_VALIDATION.values()]


SOURCES: dict[str, Source] = {
    "regression": Source(draw_problems, regression_validation),
    "minibatches": Source(draw_minibatches, minibatch_validation, smoothing=0.1),
}
"""By name: the problems of section 5.2 and their relatives, and ordinary training."""
