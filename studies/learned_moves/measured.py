"""Rates and snapshots chosen on validation tasks, and all methods on test tasks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studies.learned_moves.families import COUNT, FIRST
from studies.learned_moves.move import (
    Constant,
    Network,
    Proposal,
    Random,
    Several,
    Shuffled,
    Watched,
)
from studies.learned_moves.runs import Setting, trained
from studies.learned_moves.tasks import Family, Stack
from studies.report import write_json

RATES = (1e-2, 2e-2, 4e-2, 8e-2)
CONSTANTS = (-1.0, -0.5, -0.25, 0.25, 0.5, 1.0)

Losses = dict[str, list[list[float]]]
"""For each method, a list of losses a meta-seed, one a task; one list where nothing is learned."""


class Kept:
    """Results of a study by key, in a file of JSON; what is known is not computed again.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, key: str, compute: Callable[[], Any]) -> Any:
        """Return a result.

        Args:
            key: its name.
            compute: computes it where it is not known.
        """
        if key not in self.known:
            self.known[key] = compute()
            write_json(self.path, self.known)
        return self.known[key]


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        part: of the tasks of :data:`~studies.learned_moves.families.COUNT`.
        steps: of a training.
        rates: to choose from.
    """

    part: float = 1.0
    steps: int = 100
    rates: tuple[float, ...] = RATES

    def stack(self, family: Family, role: str) -> Stack:
        """Return the tasks of a family in a role.

        Args:
            family: the family.
            role: "validation" or "test".
        """
        count = max(1, round(self.part * COUNT[family.kind]))
        return family.stack(range(FIRST[role], FIRST[role] + count))


def own_rates(kept: Kept, families: Sequence[Family], scale: Scale) -> dict[str, dict[str, float]]:
    """Return the best rate of no moves, and of the balance by hand, by kind of task.

    Args:
        kept: what is known.
        families: for validation.
        scale: how much is measured.
    """
    methods: dict[str, Proposal | None] = {"none": None, "balance": Constant()}
    found: dict[str, dict[str, float]] = {}
    for kind in dict.fromkeys(family.kind for family in families):
        own = [family for family in families if family.kind == kind]

        def score(method: str, rate: float, own: Sequence[Family] = own) -> float:
            logs = [
                trained(scale.stack(f, "validation"), Setting(rate, scale.steps), methods[method])
                for f in own
            ]
            return sum(float(losses.log().mean()) for losses in logs) / len(logs)

        table = {
            (method, rate): kept.get(f"rate {kind} {method} {rate:g}", partial(score, method, rate))
            for method in methods
            for rate in scale.rates
        }
        found[kind] = {m: min(scale.rates, key=lambda r: table[m, r]) for m in methods}
    return found


def hand_constant(kept: Kept, families: Sequence[Family], rate: float, scale: Scale) -> float:
    """Return the t, the same along all directions, that is best on validation tasks of a kind.

    Args:
        kept: what is known.
        families: of the kind.
        rate: of AdamW.
        scale: how much is measured.
    """

    def compute() -> list[float]:
        several = Several([Constant(t) for t in CONSTANTS])
        logs = [
            trained(
                scale.stack(f, "validation"), Setting(rate, scale.steps), several, len(CONSTANTS)
            )
            for f in families
        ]
        return torch.stack([losses[0].log().mean(dim=-1) for losses in logs]).mean(dim=0).tolist()

    scores = kept.get(f"constant {families[0].kind}", compute)
    return CONSTANTS[scores.index(min(scores))]


def chosen(
    kept: Kept, snapshots: Tensor, families: Sequence[Family], rates: dict[str, float], scale: Scale
) -> tuple[list[int], float, float]:
    """Return the snapshot of each meta-seed that is best, and the mean and size of its t.

    Args:
        kept: what is known.
        snapshots: weights of m2, ``(snapshots, seeds, size)``.
        families: for validation.
        rates: of AdamW, by kind.
        scale: how much is measured.
    """

    def compute() -> dict[str, Any]:
        networks = [Watched(Network(theta)) for theta in snapshots.flatten(0, 1)]
        logs = []
        for family in families:
            stack = scale.stack(family, "validation")
            setting = Setting(rates[family.kind], scale.steps)
            losses = trained(stack, setting, Several(networks), len(networks))[0]
            logs.append(losses.log().mean(dim=-1).reshape(snapshots.shape[:2]))
        scores = torch.stack(logs).mean(dim=0)
        best = scores.argmin(dim=0).tolist()
        count = snapshots.shape[1]
        t = torch.cat([
            found.flatten()
            for seed, place in enumerate(best)
            for found in networks[place * count + seed].found
        ])  # fmt: skip
        size = float(t.square().mean().sqrt())
        return {"scores": scores.tolist(), "best": best, "mean": float(t.mean()), "size": size}

    found = kept.get("chosen", compute)
    return found["best"], found["mean"], found["size"]


def compared(
    kept: Kept, family: Family, thetas: Tensor, rate: float, others: dict[str, float],
    constants: tuple[float, float], size: float, scale: Scale,
) -> Losses:  # fmt: skip
    """Return the losses of all methods on the test tasks of a family.

    Args:
        kept: what is known.
        family: the family.
        thetas: weights of m2 of each meta-seed.
        rate: of AdamW, for all methods.
        others: the own rates of "none" and "balance".
        constants: t that is best by hand, and the mean of the learned ones.
        size: the root mean square of the learned t.
        scale: how much is measured.
    """
    setting = Setting(rate, scale.steps)
    learned = [Network(theta) for theta in thetas]
    seeded = [torch.Generator().manual_seed(seed) for seed in range(len(learned))]
    groups: dict[str, list[Proposal]] = {
        "balance": [Constant()],
        "constant by hand": [Constant(constants[0])],
        "constant of the learned mean": [Constant(constants[1])],
        "random": [Random(size, torch.Generator().manual_seed(0))],
        "learned": [*learned],
        "learned, features shuffled": [
            Shuffled(own, generator) for own, generator in zip(learned, seeded, strict=True)
        ],
    }

    def run(setting: Setting, proposals: Sequence[Proposal]) -> list[list[float]]:
        stack = scale.stack(family, "test")
        propose = Several(proposals) if proposals else None
        (losses,) = trained(stack, setting, propose, max(1, len(proposals)))
        found: list[list[float]] = losses.tolist()
        return found

    key = f"test {family.kind} {family.name}"
    every = [propose for group in groups.values() for propose in group]
    together = kept.get(key, partial(run, setting, every))
    losses: Losses = {"none": kept.get(f"{key} none", partial(run, setting, []))}
    place = 0
    for name, group in groups.items():
        losses[name] = together[place : place + len(group)]
        place += len(group)
    reset = Setting(rate, scale.steps, "reset")
    losses["learned, averages reset"] = kept.get(f"{key} reset", partial(run, reset, learned))
    alone: dict[str, list[Proposal]] = {"none": [], "balance": [Constant()]}
    for name, proposals in alone.items():
        own = Setting(others[name], scale.steps)
        losses[f"{name}, its own rate"] = (
            losses[name] if others[name] == rate
            else kept.get(f"{key} {name} own", partial(run, own, proposals))
        )  # fmt: skip
    return losses
