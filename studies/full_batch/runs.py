"""Runs of one optimizer on one network, a line of JSON each, so that a study goes on."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from metaopt.errors import UserError
from metaopt.randomness import same_randomness
from metaopt.storage import write_atomically
from metaopt.tasks import Task, first_seeds
from studies.builders import Build
from studies.full_batch.methods import OF_CHAINS, Methods, is_chain
from studies.steps import step_on

RESULTS = "results.jsonl"
LOWEST = 1e-30  # that a loss counts as

Run = Mapping[str, Any]
"""A line of the results: what was run, and the losses and seconds of it."""


@dataclass(frozen=True)
class Extent:
    """The sizes of the study.

    Attributes:
        marks: steps whose losses are reported.
        validation: how many seeds settings are chosen on.
        test: how many seeds are reported.
        settings: the most of a method.
    """

    marks: tuple[int, ...] = (0, 30, 100, 300)
    validation: int = 3
    test: int = 5
    settings: int | None = None


QUICK = Extent((0, 3, 10), 1, 2, 2)


def run(task: Task, build: Build, seed: int, marks: Sequence[int]) -> dict[str, Any]:
    """Step an optimizer on the one batch of a task.

    A run whose loss is not finite ends there.

    Args:
        task: the problem.
        build: makes the optimizer of its network.
        seed: of the weights and the data.
        marks: steps after which the held-out error is measured; the last is the last step.

    Returns:
        "train", the losses after 0, 1, ... steps; "test", the held-out errors by step; and
        "seconds", of the processor, since the start, without those of the errors. null is what is
        not finite.
    """
    model = task.model(seed)
    (batch,), (held_out,) = task.batches(seed, "train"), task.batches(seed, "test")
    with same_randomness(seed):
        optimizer = build(model)
        losses: list[float] = []
        test: dict[str, float] = {}
        seconds = [0.0]
        loss = partial(task.loss, model, batch)
        for step in range(marks[-1] + 1):
            if step in marks:
                test[str(step)] = task.metrics(model, held_out)["error"].item()
            if step == marks[-1]:
                losses.append(loss().item())
                break
            start = time.process_time()
            losses.append(step_on(optimizer, loss).item())
            seconds.append(seconds[-1] + time.process_time() - start)
            if not math.isfinite(losses[-1]):
                break
    return {
        "train": [_rounded(value) for value in losses],
        "test": {step: _rounded(value) for step, value in test.items()},
        "seconds": [_rounded(value) for value in seconds[: len(losses)]],
    }


def measure(
    tasks: Mapping[str, Task], contenders: Methods, extent: Extent, path: Path
) -> list[Run]:
    """Run what the results have not yet: all settings on validation seeds, the best on test seeds.

    Args:
        tasks: the problems by name.
        contenders: the methods.
        extent: the sizes of the study.
        path: the results, to which a line a run is added.

    Returns:
        The runs on test seeds.
    """
    runs = {_key(own): own for own in read(path)}
    pairs = [
        (task, name)
        for task, own in tasks.items()
        for name in contenders
        if name not in OF_CHAINS or is_chain(own.model(0))
    ]

    def done(task: str, name: str, setting: str, role: str, count: int) -> list[Run]:
        found = []
        for seed in first_seeds(role, count):
            what = {"problem": task, "method": name, "setting": setting, "seed": seed}
            what |= {"steps": extent.marks[-1]}
            if _key(what) not in runs:
                measured = run(tasks[task], contenders[name][setting], seed, extent.marks)
                runs[_key(what)] = what | measured
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(what | measured) + "\n")
            found.append(runs[_key(what)])
        return found

    reported = []
    for task, name in tqdm(pairs, unit="method"):
        settings = list(contenders[name])[: extent.settings]
        if len(settings) > 1:
            scores = {
                setting: score(done(task, name, setting, "validation", extent.validation), extent)
                for setting in settings
            }
            settings = [min(settings, key=scores.__getitem__)]
        reported += done(task, name, settings[0], "test", extent.test)
    return reported


def score(runs: Sequence[Run], extent: Extent) -> float:
    """Return the mean log loss over runs and marks; infinite where one is not finite."""
    losses = torch.tensor([[train(own, t) for t in extent.marks[1:]] for own in runs])
    return log_mean(losses.flatten())


def train(own: Run, step: int) -> float:
    """Return the training loss of a run after some steps; infinite where it is not finite."""
    losses = own["train"]
    value = losses[step] if step < len(losses) else None
    return math.inf if value is None else float(value)


def test(own: Run, step: int) -> float:
    """Return the held-out error of a run at a mark; infinite where it is not finite."""
    value = own["test"].get(str(step))
    return math.inf if value is None else float(value)


def log_mean(values: Tensor) -> float:
    """Return the mean logarithm of losses; infinite where one is not finite."""
    return float(values.double().clamp(min=LOWEST).log().mean().nan_to_num(nan=math.inf))


def read(path: Path) -> list[Run]:
    """Return the runs of a file; a last line that was cut short is removed from it.

    Args:
        path: the file; without one there are no runs.

    Raises:
        UserError: if a whole line is no run.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        write_atomically(path, whole)
    try:
        runs = [json.loads(line) for line in whole.decode().splitlines()]
        for own in runs:
            _key(own), own["train"], own["test"], own["seconds"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"expected runs of this study in {str(path)!r}, got a line that is damaged or "
            f"something else ({type(error).__name__}): choose another --out, or remove the file"
        ) from None
    return runs


def _key(own: Run) -> tuple[Any, ...]:
    return tuple(own[name] for name in ("problem", "method", "setting", "seed", "steps"))


def _rounded(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None
