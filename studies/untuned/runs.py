"""Runs of one optimizer on one network, a line of JSON each, so that a study goes on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from metaopt.errors import UserError
from metaopt.evaluation.ordinary import ORDINARY
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.randomness import same_randomness
from metaopt.tasks import first_seeds
from metaopt.tasks.suite.text import text_digest
from studies.suite.kept import Log
from studies.suite.protocol import OPEN, Contender, contender
from studies.suite.runs import Record, evaluated, kept, settle, trained
from studies.untuned.tasks import NETWORKS, task_of

LAST = 5
"""Steps that the final training loss is the mean of."""


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
    methods: Sequence[Contender], extent: Extent, data_dir: str | None, log: Log
) -> list[Record]:
    """Make the runs that are not there yet, one seed after another, and return all.

    Args:
        methods: what is compared.
        extent: how much is run.
        data_dir: the folder that has the folder ``cifar10``; None for ``$METAOPT_DATA``.
        log: the finished runs, to which each new one is added.
    """
    planned = {
        _key(network, of, seed, extent): (network, of, seed)
        for seed in first_seeds("test", extent.seeds)
        for network in NETWORKS
        for of in methods
    }
    left = {key: what for key, what in planned.items() if key not in log.records}
    for key, (network, of, seed) in tqdm(left.items(), unit="run"):
        log.add({"key": key, **run(network, of, seed, extent, data_dir)})
    return [log.records[key] for key in planned]


def run(network: str, of: Contender, seed: int, extent: Extent, data_dir: str | None) -> Record:
    """Make a run, and return what is kept of it.

    "train" is the mean loss of the last five minibatches, "loss" that of the held-out samples at
    the end, "highest" the highest loss of a minibatch over the first one. "seconds" are those of
    the processor for all steps, batches included and evaluations not. null is what is not finite.

    Args:
        network: a key of ``NETWORKS``.
        of: the method.
        seed: of initial weights and of the order of the data.
        extent: the number of steps, and whether the network is tiny.
        data_dir: the folder that has the folder ``cifar10``; None for ``$METAOPT_DATA``.
    """
    task = task_of(network, data_dir, extent.quick)
    with same_randomness(seed):
        model = task.model(seed)
        optimizer = _optimizer(of, model, extent.steps)
        losses, seconds = trained(task, model, optimizer, seed, extent.steps)
        loss = math.inf
        if math.isfinite(losses[-1]):
            settle(task, model, optimizer, seed)
            loss = evaluated(task, model, seed, "test")["loss"]
    return {
        "network": network,
        "method": of.name,
        "seed": seed,
        "steps": extent.steps,
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


def _key(network: str, of: Contender, seed: int, extent: Extent) -> str:
    """Names the run, and differs from that of any other."""
    data = text_digest() if network == "gpt" else "cifar10"
    size = "tiny" if extent.quick else "whole"
    parts = (network, size, of.name, of.digest, seed, extent.steps, data)
    return "|".join(map(str, parts))
