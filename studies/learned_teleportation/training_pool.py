"""Train many recipes, several at a time, resuming what was begun before."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from tqdm import tqdm

from metaopt.cli.recipes import Recipe
from metaopt.errors import UserError
from metaopt.training.run import run_training
from metaopt.training.trainer import Trainer

Job = tuple[Recipe, Path]
"""A recipe with its meta-seed, and the folder of its training."""


def train_all(jobs: Sequence[Job], processes: int) -> None:
    """Run the jobs, one thread each; the progress of each goes to ``train.log`` in its folder.

    Args:
        jobs: what to train.
        processes: how many at a time.

    Raises:
        UserError: after all others are done, if a run could not go on, saying which.
    """
    failed = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        futures = {pool.submit(train_one, *job): job[1] for job in jobs}
        done = tqdm(as_completed(futures), total=len(futures), desc="training", unit="run")
        try:
            for future in done:
                try:
                    future.result()
                except UserError as error:
                    failed.append(f"{futures[future]}: {error}")
        except BaseException:  # a signal: end at once; each run goes on from its last checkpoint
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            raise
    if failed:
        raise UserError("; ".join(failed))


def train_one(recipe: Recipe, out: Path) -> None:
    """Run one job, from where it was left."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "train.log").open("a") as log, contextlib.redirect_stderr(log):
        run_training(Trainer(recipe.networks, recipe.training), out, resume=True, overwrite=False)


def seeded(name: str, recipe: Recipe, seeds: Iterable[int], out: Path) -> list[Job]:
    """Return one job for each meta-seed, in the folder ``out/NAME-SEED``."""
    return [(recipe.with_seed(seed), out / f"{name}-{seed}") for seed in seeds]
