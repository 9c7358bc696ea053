"""Section 4.4: one teleport towards flatter or less curved points, and the training after it.

Networks are trained to the epoch of the teleport; then each variant of each goes on from there, all
together. Beside every teleport stand its controls: a random g of the same size, and a random step
off the orbit that raises the loss as much, since on 2,000 samples no group acts exactly and what is
left of a teleport may be no more than a warm restart.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from metaopt.tasks.data import Dataset, batches
from studies.generalization.kept import keep, kept
from studies.generalization.moves import Effort, Outcome, Teleporter
from studies.generalization.networks import (
    Weights,
    evaluate,
    initial_weights,
    single,
)
from studies.generalization.setting import SETTINGS, Rows, rows_of
from studies.generalization.teleport_report import NONE, report
from studies.generalization.training import trained
from studies.report import write_json

TELEPORTS: dict[str, Callable[[Teleporter], Outcome]] = {
    f"{measure} {way}{', guarded' if guarded else ''}": partial(search, sign=sign, guarded=guarded)
    for guarded in (False, True)
    for measure, search in (("phi", Teleporter.phi), ("psi", Teleporter.psi))
    for way, sign in (("down", -1), ("up", 1))
}
"""The paper's search, and one that never ends on the wrong side of its start."""

CONTROLS: dict[str, Callable[[Teleporter, Outcome], Outcome]] = {
    "random g": Teleporter.random,
    "warm restart": Teleporter.warm_restart,
}
VARIANTS = (NONE, *(n for t in TELEPORTS for n in (t, *(f"{t}: {c}" for c in CONTROLS))))
"""All that is done, in the order of the networks."""


@dataclass(frozen=True)
class TeleportScale:
    """How much of everything."""

    seeds: int = 5
    images: int = 50_000
    tested: int = 10_000
    watched: int = 10_000  # training images whose loss is shown
    at: int = 20  # the epoch of the teleport
    epochs: int = 40
    effort: Effort = field(default_factory=Effort)


QUICK = TeleportScale(
    2, 2000, 1000, 1000, 2, 4, Effort(2, 200, guarded_steps=2, directions=10, curves=2)
)
"""Enough to see that everything runs."""


def teleports(out: Path, dataset: Dataset, scale: TeleportScale) -> str:
    """Run the study into ``out``, and return its table."""
    setting = SETTINGS[dataset.name]
    train, test = rows_of(dataset, scale.images, scale.tested)
    classes = max(10, int(max(train[1].max(), test[1].max())) + 1)
    sizes = (train[0].shape[1], *setting.teleported, classes)
    plan: dict[str, Any] = {"data": dataset.name, **asdict(scale), "sizes": sizes}
    shown = (train[0][: scale.watched], train[1][: scale.watched])

    def watch(weights: Weights) -> dict[str, Any]:
        (trained_to, _), (loss, accuracy) = evaluate(weights, *shown), evaluate(weights, *test)
        columns = {"train": trained_to, "test": loss, "accuracy": accuracy}
        return {name: column.tolist() for name, column in columns.items()}

    before, first = trained(
        out / f"{dataset.name}-before.safetensors",
        plan,
        lambda: initial_weights(range(1000, 1000 + scale.seeds), sizes),
        train,
        setting.rate,
        range(scale.at),
        watch,
    )
    moved, facts = _moved(out, dataset.name, plan, before, train, scale)
    at = watch(moved)
    _, second = trained(
        out / f"{dataset.name}-after.safetensors",
        plan,
        lambda: moved,
        train,
        setting.rate,
        range(scale.at, scale.epochs),
        watch,
    )
    result = {
        "plan": plan,
        "variants": VARIANTS,
        "facts": facts,
        "before": first,
        "at": at,
        "after": second,
    }
    write_json(out / f"{dataset.name}-teleport.json", result)
    return report(out, dataset.name, json.loads(json.dumps(result)))


def _moved(
    out: Path, name: str, plan: dict[str, Any], weights: Weights, train: Rows, scale: TeleportScale
) -> tuple[Weights, dict[str, list[dict[str, float]]]]:
    """Weights of every variant of every network, ``(seeds * variants, ...)``, and what was done."""
    stacks: list[Weights] = []
    facts: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
    for seed, own in enumerate(tqdm(single(weights), total=scale.seeds, desc="teleports")):
        path = out / "moves" / f"{name}-{seed}.safetensors"
        done = kept(path, plan)
        if done is None:
            done = _of_one(own, train, seed, scale)
            keep(path, done[0], plan, done[1])
        stacks.append(done[0])
        for variant, fact in zip(VARIANTS, done[1], strict=True):
            facts[variant].append(fact)
    return [torch.cat(layers) for layers in zip(*stacks, strict=True)], facts


Done = tuple[Weights, list[dict[str, float]]]


def _of_one(own: Weights, train: Rows, seed: int, scale: TeleportScale) -> Done:
    generator = torch.Generator().manual_seed(10**7 + seed)
    drawn = batches(train, scale.effort.samples, generator)
    chosen = [pair for _, pair in zip(range(scale.effort.batches), drawn, strict=False)]
    teleporter = Teleporter(own, chosen, scale.effort, seed)
    outcomes = [teleporter.warm_restart(Outcome(own, 0.0, 0.0, 0.0, 0.0, 0.0))]  # stays
    for teleport in TELEPORTS.values():
        outcome = teleport(teleporter)
        outcomes += [outcome, *(control(teleporter, outcome) for control in CONTROLS.values())]
    stacks = [torch.stack(layer) for layer in zip(*(o.weights for o in outcomes), strict=True)]
    return stacks, [outcome.facts() for outcome in outcomes]
