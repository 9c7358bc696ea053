"""One run: an optimizer on a task, in an ordinary training loop."""

from __future__ import annotations

import math
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from metaopt.evaluation.ordinary import ORDINARY
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.randomness import same_randomness
from metaopt.tasks import Task
from metaopt.tasks.suite import suite_task
from studies.suite.protocol import TEST_SEEDS, Run

BLOCKS = 100
"""Of a run; the curve has the mean training loss of each."""

LAST = 5
"""Blocks that a smoothed training loss is the mean of."""

NORM_BATCHES = 20
"""Batches that renew the statistics of batch norm where an optimizer evaluates other weights."""

Record = dict[str, Any]
"""What is kept of a run."""


def measure(run: Run, data_dir: str | None, pretrained: Path) -> Record:
    """Make a run, and return what is kept of it.

    Seconds are those of the processor on one thread, of all steps together, batches included and
    evaluations not. A loss that is not finite ends the run and counts as infinite from then on.

    Args:
        run: what to run.
        data_dir: the folder that has a folder of each data set of images.
        pretrained: the file of the weights that LoRA tunes.
    """
    task = suite_task(run.task, data_dir, pretrained)
    with same_randomness(run.seed):
        model = task.model(run.seed)
        optimizer = _optimizer(run, model)
        losses, seconds = trained(task, model, optimizer, run.seed, run.steps)
        whole = math.isfinite(losses[-1])
        if whole:
            settle(task, model, optimizer, run.seed)
        split = "test" if run.seed in TEST_SEEDS else "validation"
        found = evaluated(task, model, run.seed, split) if whole else {"loss": math.inf}
    curve = [float(block.mean()) for block in np.array_split(losses, min(BLOCKS, run.steps))]
    record = {
        "key": run.key,
        "task": run.task,
        "method": run.method,
        "rate": run.setting.rate,
        "decay": run.setting.decay,
        "seed": run.seed,
        "steps": run.steps,
        "split": split,
        "loss": kept(found["loss"]),
        "accuracy": kept(found.get("accuracy")),
        "train": kept(float(np.mean(curve[-LAST:]))),
        "highest": kept(float(losses.max() / losses[0])),
        "seconds": round(seconds, 3),
    }
    return record | {"curve": [kept(value) for value in curve]}


def _optimizer(run: Run, model: nn.Module) -> torch.optim.Optimizer:
    if run.digest:
        return LearnedOptimizer(model, run.optimizer, total_steps=run.steps if run.told else 0)
    setting = run.setting
    return ORDINARY[run.optimizer].optimizer(model, run.steps, setting.rate, setting.decay)


def trained(
    task: Task, model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, steps: int
) -> tuple[np.ndarray[Any, np.dtype[np.float64]], float]:
    """Train a module; return the loss before each step, and the processor seconds of all steps.

    A loss that is not finite ends the run and counts as infinite from then on.

    Args:
        task: the task.
        model: its model.
        optimizer: of the model.
        seed: of the order of the data.
        steps: how many.
    """
    losses = np.full(steps, np.inf)
    model.train()
    batches = islice(iter(task.batches(seed, "train")), steps)  # loads the data
    start = time.process_time()
    for step, batch in enumerate(batches):
        optimizer.zero_grad()
        loss = task.loss(model, batch)
        losses[step] = loss.item()
        if not math.isfinite(losses[step]):
            losses[step:] = np.inf
            break
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return losses, time.process_time() - start


def settle(task: Task, model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    """Bring the weights that are evaluated into the model, with the statistics of its norms.

    Args:
        task: the task.
        model: its model.
        optimizer: of the model; one without an ``eval`` evaluates the weights that it steps.
        seed: of the order of the data.
    """
    if not hasattr(optimizer, "eval"):
        return
    optimizer.eval()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over the batches that follow
    if norms:
        with torch.no_grad():
            for batch in islice(iter(task.batches(seed, "train")), NORM_BATCHES):
                task.loss(model, batch)


@torch.no_grad()
def evaluated(task: Task, model: nn.Module, seed: int, split: str) -> dict[str, float]:
    """Return the loss and the metrics of a split in evaluation mode, the mean over its batches.

    Args:
        task: the task.
        model: its model.
        seed: of the run.
        split: "validation" or "test".
    """
    model.eval()
    found: dict[str, list[float]] = {}
    sizes = []
    for batch in task.batches(seed, split):
        sizes.append(len(batch[0]))
        for name, value in {"loss": task.loss(model, batch), **task.metrics(model, batch)}.items():
            found.setdefault(name, []).append(value.item())
    return {name: float(np.average(values, weights=sizes)) for name, values in found.items()}


def kept(value: float | None) -> float | None:
    """Return a number of five digits; None where it is not finite, as JSON has no infinity."""
    return float(f"{value:.5g}") if value is not None and math.isfinite(value) else None
