"""Image runs written by hand, and a study of a size that takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from data_cases import make_dataset
from torch import Tensor, nn
from torch.nn import functional

from metaopt.tasks.data import Dataset, load
from studies.optimizers.image_runs import Plan, Run
from studies.optimizers.mnist import Cell, ImageScale

TINY = ImageScale(100, 50, 2, 2, 1, (3e-3, 3e-2), ("momentum", "adam"))
PLAN = Plan("momentum", 0.01, 0, 2)
TORCH: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "momentum": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
}

Pair = tuple[Tensor, Tensor]


def dataset(folder: Path) -> Dataset:
    """Generated images, written as IDX files and read back."""
    return load("mnist", make_dataset(folder, "mnist", train=300, test=100))


def pairs(folder: Path) -> tuple[Pair, Pair]:
    """200 training and 60 test images, pixels in [0, 1]."""
    read = dataset(folder)
    train, test = (
        (part.pixels[:count].flatten(1) / 255, part.labels[:count])
        for part, count in ((read.train, 200), (read.test, 60))
    )
    return train, test


def by_hand(
    plan: Plan, train: Pair, test: Pair, new_at: int | None = None
) -> tuple[list[float], list[float]]:
    """(training, test) losses of plain training; the optimizer is a new one at epoch ``new_at``."""
    with torch.random.fork_rng():
        torch.manual_seed(plan.seed)
        model = nn.Sequential(
            nn.Linear(784, 16, bias=False),
            nn.LeakyReLU(0.1),
            nn.Linear(16, 10, bias=False),
            nn.LeakyReLU(0.1),
            nn.Linear(10, 10, bias=False),
        )
    optimizer = TORCH[plan.optimizer](model.parameters(), lr=plan.rate)
    order = torch.Generator().manual_seed(plan.seed)
    losses: tuple[list[float], list[float]] = ([], [])

    def evaluate() -> None:
        with torch.no_grad():
            for side, (x, y) in zip(losses, (train, test), strict=True):
                side.append(functional.cross_entropy(model(x), y).item())

    evaluate()
    for epoch in range(plan.epochs):
        if epoch == new_at:
            optimizer = TORCH[plan.optimizer](model.parameters(), lr=plan.rate)
        for index in torch.randperm(len(train[0]), generator=order).split(plan.minibatch):
            optimizer.zero_grad()
            functional.cross_entropy(model(train[0][index]), train[1][index]).backward()
            optimizer.step()
        evaluate()
    return losses


def made_up(last: float, seconds: float = 1.0, **facts: Any) -> Run:
    """A run of two epochs that ends at a training loss, after some seconds."""
    return Run([2.0, 1.0, last], [2.0, 1.0, last], [0.1, 0.5, 0.9], [0.0, 0.1, seconds], **facts)


def cell(images: int = 200, **variants: list[Run]) -> Cell:
    """Of made up runs; underscores in names are spaces, and "eq79" is "eq. 79"."""
    names = {name: name.replace("eq79", "eq. 79").replace("_", " ") for name in variants}
    named = {names[name].replace(" random", ", random"): runs for name, runs in variants.items()}
    return Cell(replace(PLAN, epochs=2), named, images)
