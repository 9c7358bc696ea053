"""The study: tune each baseline for each task, run what was chosen on test seeds, keep all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from metaopt.cli.common import set_threads
from studies.suite.kept import Log
from studies.suite.protocol import TEST_SEEDS, TUNING_SEEDS, Contender, Run, Setting, plan
from studies.suite.runs import Record, measure

Chosen = dict[tuple[str, str], Setting]
"""The setting of a method on a task, by (task, method)."""


@dataclass(frozen=True)
class Study:
    """Where a study is, and how it runs.

    Attributes:
        log: its finished runs.
        tasks: names of tasks.
        data_dir: the folder that has a folder of each data set of images.
        pretrained: the file of the weights that LoRA tunes.
        processes: runs at a time.
        quick: whether runs have few steps and one test seed.
    """

    log: Log
    tasks: Sequence[str]
    data_dir: str | None
    pretrained: Path
    processes: int = 1
    quick: bool = False

    @property
    def test_seeds(self) -> tuple[int, ...]:
        """The seeds of what is reported."""
        return TEST_SEEDS[:1] if self.quick else TEST_SEEDS

    def tune(self, contenders: Sequence[Contender]) -> tuple[Chosen, Mapping[Any, float]]:
        """Run all settings of each method on the validation seeds, and choose the best ones.

        Args:
            contenders: the methods; those of one setting are not run.

        Returns:
            The setting of the lowest validation loss at the end of the run, for each task and
            method, and the validation losses by (task, method, setting).
        """
        runs = {
            (task, of.name, setting): [
                self._plan(task, of, setting, seed) for seed in TUNING_SEEDS[:1]
            ]
            for task in self.tasks
            for of in contenders
            if len(of.settings) > 1
            for setting in of.settings
        }
        self._run_all([run for own in runs.values() for run in own], "tuning")
        losses = {
            cell: sum(_number(self.log.records[run.key]["loss"]) for run in own) / len(own)
            for cell, own in runs.items()
        }
        chosen = {}
        for task in self.tasks:
            for of in contenders:
                own = {s: losses.get((task, of.name, s), 0.0) for s in of.settings}
                chosen[task, of.name] = min(own, key=lambda setting: own[setting])
        return chosen, losses

    def test(self, contenders: Sequence[Contender], chosen: Chosen) -> list[Record]:
        """Run methods on the test seeds, and return what is kept of these runs.

        Args:
            contenders: the methods.
            chosen: their settings.
        """
        runs = [
            self._plan(task, of, chosen[task, of.name], seed)
            for task in self.tasks
            for of in contenders
            for seed in self.test_seeds
        ]
        self._run_all(runs, "test runs")
        return [self.log.records[run.key] for run in runs]

    def _plan(self, task: str, of: Contender, setting: Setting, seed: int) -> Run:
        return plan(task, of, setting, seed, self.quick, self.pretrained)

    def _run_all(self, runs: Iterable[Run], what: str) -> None:
        left = list({run.key: run for run in runs if run.key not in self.log.records}.values())
        job = partial(measure, data_dir=self.data_dir, pretrained=self.pretrained)
        for record in tqdm(_done(job, left, self.processes), what, len(left), unit="run"):
            self.log.add(record)


def _done(job: Callable[[Run], Record], runs: Sequence[Run], processes: int) -> Iterator[Record]:
    """Yield what runs return, in the order in which they end."""
    if processes == 1 or len(runs) < 2:
        yield from map(job, runs)
        return
    # Forked processes would share the locks of torch's threads.
    with ProcessPoolExecutor(processes, get_context("spawn"), set_threads, (1,)) as pool:
        futures: list[Future[Record]] = [pool.submit(job, run) for run in runs]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _number(value: float | None) -> float:
    return math.inf if value is None else value
