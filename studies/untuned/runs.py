"""Runs of one optimizer on one network, a line of JSON each, so that a study goes on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from metaopt.errors import UserError
from metaopt.evaluation.ordinary import ORDINARY
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.randomness import same_randomness
from metaopt.tasks import Task, first_seeds
from studies.suite.kept import Log
from studies.suite.protocol import OPEN, Contender, contender
from studies.suite.runs import Record, evaluated, kept, settle, trained

LAST = 5
"""Steps that the final training loss is the mean of."""


class Subject(NamedTuple):
    """What methods are compared on.

    Attributes:
        task: a network and its data.
        data: names the data.
    """

    task: Task
    data: str = ""


@dataclass(frozen=True)
class Extent:
    """How much is run.

    Attributes:
        steps: of a run.
        seeds: how many, of initial weights and of the order of the data.
        quick: whether the networks are tiny.
    """

    steps: int = 60
    seeds: int = 3
    quick: bool = False


def contenders(names: Sequence[str]) -> list[Contender]:
    """Return methods by name, each with one setting and each once.

    Args:
        names: as :func:`studies.suite.protocol.contender` takes them.

    Raises:
        UserError: for one that is unknown, or that would have to be tuned.
    """
    found = [contender(name) for name in dict.fromkeys(names)]
    for of in found:
        if len(of.settings) > 1:
            raise UserError(
                f"expected a rate of {of.name}, got none: nothing is tuned here, so name one, as "
                f"in {of.name}@{ORDINARY[of.name].rate:g}"
            )
    return found


def measure(
    methods: Sequence[Contender], extent: Extent, subjects: Mapping[str, Subject], log: Log
) -> list[Record]:
    """Make the runs that are not there yet, one seed after another, and return all.

    Args:
        methods: what is compared.
        extent: how much is run.
        subjects: what they are compared on, by name.
        log: the finished runs, to which each new one is added.
    """
    planned = {
        _key(network, subjects[network].data, of, seed, extent): (network, of, seed)
        for seed in first_seeds("test", extent.seeds)
        for network in subjects
        for of in methods
    }
    left = {key: what for key, what in planned.items() if key not in log.records}
    for key, (network, of, seed) in tqdm(left.items(), unit="run"):
        task = subjects[network].task
        log.add({"key": key, "network": network, **run(task, of, seed, extent.steps)})
    return [log.records[key] for key in planned]


def run(task: Task, of: Contender, seed: int, steps: int) -> Record:
    """Make a run, and return what is kept of it.

    "train" is the mean loss of the last five minibatches, "loss" that of the held-out samples at
    the end, "highest" the highest loss of a minibatch over the first one. "seconds" are those of
    the processor for all steps, batches included and evaluations not. null is what is not finite.

    Args:
        task: a network and its data.
        of: the method.
        seed: of initial weights and of the order of the data.
        steps: how many.
    """
    with same_randomness(seed):
        model = task.model(seed)
        optimizer = _optimizer(of, model, steps)
        losses, seconds = trained(task, model, optimizer, seed, steps)
        loss = math.inf
        if math.isfinite(losses[-1]):
            settle(task, model, optimizer, seed)
            loss = evaluated(task, model, seed, "test")["loss"]
    return {
        "method": of.name,
        "seed": seed,
        "steps": steps,
        "train": kept(float(np.mean(losses[-LAST:]))),
        "loss": kept(loss),
        "highest": kept(float(losses.max() / losses[0])),
        "seconds": round(seconds, 3),
        "curve": [kept(float(value)) for value in losses],
    }


def _optimizer(of: Contender, model: nn.Module, steps: int) -> torch.optim.Optimizer:
    if of.learned:
        told = not of.name.endswith(OPEN)
        return LearnedOptimizer(model, of.optimizer, total_steps=steps if told else 0)
    (setting,) = of.settings
    return ORDINARY[of.optimizer].optimizer(model, steps, setting.rate, setting.decay)


def _key(network: str, data: str, of: Contender, seed: int, extent: Extent) -> str:
    """Names the run, and differs from that of any other."""
    size = "tiny" if extent.quick else "whole"
    parts = (network, size, of.name, of.digest, seed, extent.steps, data)
    return "|".join(map(str, parts))
