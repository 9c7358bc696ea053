"""Section 5.1: standard optimizers on MNIST with and without a teleport (Figures 5 and 13).

Two settings. "paper": the rates, moments and resets of the paper's released code (appendix G.2
prints the rates of its teleports as those of the optimizers). "tuned": each optimizer at the best
of a grid of rates, chosen on validation images with other seeds. Beside every teleport stand its
controls: the same run without one, a reset of the optimizer's buffers alone, and a random g of the
same size: as long a way along one random direction. (The size and bound of the guarded searches,
and the epoch in the tuned setting, were set before the study, after one run of Adam with seed 0.)

Of the ten steps of a search by eq. 79, five ("paper") or ten ("tuned") are made along one gradient
of the objective; in the released code each has its own (docs/experiments.md has what that changes).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from metaopt.evaluation.sweep import lowest_rate
from metaopt.tasks.data import Dataset, standardized
from studies.optimizers.image_runs import BASES, Pair, Plan, Run, Teleport, run, seconds_per_step

TRAINING_IMAGES = 50_000  # of 60,000, as in the paper; the others choose the rates
SWEEP_SEED = 1000  # far from the seeds that are reported
VARIANTS: dict[str, dict[str, Teleport | None]] = {
    "paper": {
        "no teleport": None,
        "reset alone": Teleport("none", "reset"),
        "eq. 79": Teleport("pre_activation", "reset"),
        "eq. 79, random g": Teleport("pre_activation", "reset", random=True),
    },
    "tuned": {
        "no teleport": None,
        "reset alone": Teleport("none", "reset"),
        "eq. 79": Teleport("pre_activation", size=0.02),
        "eq. 79, random g": Teleport("pre_activation", random=True, size=0.02),
        "rescaling": Teleport("rescaling"),
        "rescaling, random g": Teleport("rescaling", random=True),
        "rescaling, buffers transported": Teleport("rescaling", "transport"),
    },
}
"""The variants that are run, by setting and name."""

CONTROLS = ("no teleport", "reset alone")
PAPER_RATES = {"sgd": 1e-2, "momentum": 1e-3, "adagrad": 1e-2, "rmsprop": 1e-4, "adam": 1e-4}
PAPER_ASCENT = {"sgd": 1e-4, "momentum": 5e-2, "adagrad": 1e-4, "rmsprop": 5e-2, "adam": 5e-2}
PAPER_EPOCHS = {"sgd": 2, "momentum": 0, "adagrad": 2, "rmsprop": 0, "adam": 0}


@dataclass(frozen=True)
class ImageScale:
    """How much of everything."""

    images: int = TRAINING_IMAGES
    evaluated: int = 10_000  # validation images, and test images
    epochs: int = 5
    seeds: int = 5
    sweep_epochs: int = 3
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)
    optimizers: tuple[str, ...] = tuple(BASES)


QUICK = ImageScale(2000, 1000, 2, 2, 1, (3e-3, 3e-2), ("momentum", "adam"))
"""Sizes just large enough to see that everything runs."""


@dataclass(frozen=True)
class Cell:
    """One optimizer in one setting."""

    plan: Plan  # without a teleport, of the first seed
    variants: dict[str, list[Run]]  # a run a seed, in order

    def epoch_seconds(self) -> float:
        """Seconds of a full epoch, from the runs without a teleport."""
        each = seconds_per_step(self.variants["no teleport"], self.images, self.plan)
        return each * -(-TRAINING_IMAGES // self.plan.minibatch)

    images: int = TRAINING_IMAGES


Results = dict[str, dict[str, Cell]]
"""Results by setting and optimizer."""


def mnist(out: Path, dataset: Dataset, scale: ImageScale) -> Results:
    """All runs, into ``out/runs``; those that are there are read."""
    pixels = standardized(dataset.train).flatten(start_dim=1)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    held = len(pixels) - min(scale.evaluated, len(pixels) // 6)
    train, validation = (
        (pixels[index], dataset.train.labels[index])
        for index in (order[:held][: scale.images], order[held:])
    )
    tested = standardized(dataset.test).flatten(start_dim=1)[: scale.evaluated]
    test = (tested, dataset.test.labels[: scale.evaluated])
    folder = out / "runs"
    results: Results = {}
    for setting, variants in VARIANTS.items():
        results[setting] = {}
        for name in tqdm(scale.optimizers, desc=setting, unit="optimizer"):
            rate = PAPER_RATES[name]
            if setting == "tuned":
                rate = best_rate(name, train, validation, folder, scale)
            plan = Plan(name, rate, 0, scale.epochs)
            results[setting][name] = Cell(
                plan,
                {
                    variant: [
                        run(
                            replace(plan, seed=seed, teleport=_moved(teleport, setting, plan)),
                            train,
                            test,
                            folder,
                            f"{dataset.name}, {_name(train, test)}",
                        )
                        for seed in range(scale.seeds)
                    ]
                    for variant, teleport in variants.items()
                },
                len(train[0]),
            )
    return results


def _moved(teleport: Teleport | None, setting: str, plan: Plan) -> Teleport | None:
    """At the moment of the setting, and no later than the last epoch."""
    if teleport is None:
        return None
    if setting == "paper":
        epoch, rate = PAPER_EPOCHS[plan.optimizer], PAPER_ASCENT[plan.optimizer]
        teleport = replace(teleport, epoch=epoch, rate=rate, steps_per_gradient=5)
    return replace(teleport, epoch=min(teleport.epoch, plan.epochs - 1))


def best_rate(
    optimizer: str, train: Pair, validation: Pair, folder: Path, scale: ImageScale
) -> float:
    """The rate with the lowest validation loss after the epochs of the sweep."""

    def loss(rate: float) -> float:
        plan = Plan(optimizer, rate, SWEEP_SEED, scale.sweep_epochs)
        ran = run(plan, train, validation, folder, f"sweep, {_name(train, validation)}")
        return ran.test[-1]

    return lowest_rate(optimizer, {rate: loss(rate) for rate in scale.rates})


def _name(train: Pair, test: Pair) -> str:
    """Of these images: how many, and their labels."""
    labels = torch.cat((train[1], test[1])).to(torch.uint8).numpy().tobytes()
    digest = hashlib.sha256(labels).hexdigest()[:12]
    return f"{len(train[0])} and {len(test[0])} images, {digest}"


def final(runs: Sequence[Run]) -> list[float]:
    """The last training loss of each run."""
    return [ran.train[-1] for ran in runs]
