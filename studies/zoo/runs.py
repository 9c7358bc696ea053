"""Runs of the methods on a cell, kept in one file a cell, so that a study goes on."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaopt.evaluation.rollout import rollout
from metaopt.learned.meta_optimizer import MetaOptimizer, MetaOptimizerSpec
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.tasks import NetworkFamily, first_seeds
from studies.builders import Build
from studies.report import write_json
from studies.zoo.cells import NETWORKS, Cell
from studies.zoo.rivals import Contender

STEPS = 100
AT = (0, 10, 30, 100)
GOAL = 1e-6  # of the start, to which seconds are counted
FAR = 300  # steps of the search for the best known loss, in float64
LOWEST = 1e-14  # of the start, in curves
VANISHED = 1e-13  # of the start, where that search ends


def run(
    family: NetworkFamily,
    build: Build,
    seeds: Sequence[int],
    steps: int,
    one_by_one: bool = False,
    end: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return losses and seconds since the start, ``(steps + 1, networks)`` and ``(steps + 1,)``.

    Seconds are those of the processor, on one thread, so that other processes do not count.

    Args:
        family: the networks.
        build: makes the optimizer of a batch.
        seeds: of the networks.
        steps: how many steps to make.
        one_by_one: whether each network is run by itself.
        end: of the start, where all losses are below it the run ends.
    """
    if one_by_one:
        parts = [run(family, build, [seed], steps) for seed in seeds]
        together = torch.stack([own for _, own in parts]).sum(dim=0)
        return torch.cat([losses for losses, _ in parts], dim=1), together
    tasks = family.sample(seeds)
    optimizer = build(tasks)
    clock = [time.process_time()]
    losses = torch.empty(0, len(seeds), dtype=torch.float64)
    part = 1 if end else steps
    while len(losses) <= steps and not (len(losses) and (losses[-1] < end * losses[0]).all()):
        more = rollout(
            tasks,
            optimizer,
            part,
            measure_invariance=False,
            advance=lambda: clock.append(time.process_time()),
        )
        losses = torch.cat((losses[:-1], more.losses))
    seconds = torch.tensor(clock, dtype=torch.float64) - clock[0]
    return losses.nan_to_num(torch.inf, torch.inf), seconds


def measure(cell: Cell, contenders: Mapping[str, Contender], path: Path, quick: bool) -> None:
    """Run what the file of a cell has not yet.

    Args:
        cell: the cell.
        contenders: the methods.
        path: the file.
        quick: whether to take few steps and settings.
    """
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    family = cell.family()
    count, steps = (2, 10) if quick else (NETWORKS, STEPS)
    seeds = first_seeds("test", count)
    for name, contender in contenders.items():
        residuals = math.inf if cell.target == "classes" else family.samples * family.output
        if contender.residuals is not None and residuals > contender.residuals:
            continue
        own = kept.setdefault(name, {})
        for setting, build in list(contender.settings.items())[: 2 if quick else None]:
            if setting not in own:
                losses, seconds = run(family, build, seeds, steps, contender.one_by_one)
                own[setting] = _facts(losses, seconds)
        write_json(path, kept)
    if "best known" not in kept:
        meta = MetaOptimizer(MetaOptimizerSpec(update="whitened", element="none", hold=0.0))
        far = 20 if quick else FAR
        exact = cell.family("float64")
        losses, _ = run(exact, partial(LearnedOptimizer, optimizer=meta), seeds, far, end=VANISHED)
        kept["best known"] = losses.amin(dim=0).tolist()
        write_json(path, kept)


def _facts(losses: Tensor, seconds: Tensor) -> dict[str, Any]:
    """What is kept of a run; losses that are not finite are null."""
    reached = losses <= GOAL * losses[0]
    when = torch.where(
        reached.any(dim=0), seconds[reached.int().argmax(dim=0)], torch.full((1,), torch.inf)
    )
    return {
        "at": {str(t): losses[t].tolist() for t in AT if t < len(losses)},
        "curve": (losses / losses[0]).clamp(min=LOWEST).log().mean(dim=1).tolist(),
        "above": int((losses > losses[0] * (1 + 1e-6)).any(dim=0).sum()),
        "seconds": seconds[-1].item(),
        "seconds_to_goal": when.tolist(),
        "lowest": losses.amin(dim=0).tolist(),
    }
