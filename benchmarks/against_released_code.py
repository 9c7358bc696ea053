"""LSTM(update,tele) training here against the paper's released code, seconds a trajectory.

The released code is learn-to-teleport in github.com/Rose-STL-Lab/Teleportation-Optimization. It
has flat LSTMs with 300 hidden units and trains on one problem at a time; here 8 are trained
together by coordinate-wise LSTMs of 20 units, so this compares what each takes for a trajectory,
not two ways to compute the same thing. Of the default recipe all steps are run, and, as "ending",
what the trainer does with the shipped networks: a trajectory ends where nothing is left to learn.
With more than one thread, run on an idle machine.

python benchmarks/against_released_code.py --code DIR [--threads 2]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from command import integers
from interleaved import interleaved
from trajectory import UPDATE_TELE, train, training_problem

from metaopt.learned.checkpoint import load_meta_optimizer
from metaopt.learned.meta_optimizer import MetaOptimizer
from metaopt.training.trainer import Trainer

MODULE = "gradient_descent_mlp"
WIDTHS = [20, 20, 20, 20]  # samples, input, hidden, output


def released(code: Path, runs: int, steps: int) -> Callable[[], None]:
    """Its training of LSTM(update,tele) on ``runs`` trajectories, with its own settings."""
    if not (code / f"{MODULE}.py").is_file():
        sys.exit(f"expected {MODULE}.py in {code}: give the folder learn-to-teleport as --code")
    sys.path.insert(0, str(code.resolve()))
    train_meta_opt = importlib.import_module(MODULE).train_meta_opt

    def run() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            train_meta_opt(
                WIDTHS,
                n_run=runs,
                n_epoch=steps,
                unroll=10,
                lr=1e-4,
                lr_meta=1e-3,
                learn_tele=True,
                T_magnitude=0.01,
            )

    return run


def ending(batch: int, steps: int) -> Callable[[], object]:
    """A batch of the trainer, whose networks are trained already."""
    training = replace(
        UPDATE_TELE.training,
        batch_size=batch,
        steps=steps,
        rectangular=False,
        widths=(20,),
        depths=(2,),
        trajectories=10**9,
        learning_rate_update=1e-7,
        learning_rate_element=1e-7,
    )
    trainer = Trainer(UPDATE_TELE.networks, training)
    trained = load_meta_optimizer("lstm_update_tele_v1")
    trainer.meta.load_state_dict(trained.state_dict())
    return trainer.train_batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--code", type=Path, required=True, help="the folder learn-to-teleport")
    parser.add_argument("--batch", type=int, default=8, help="problems trained together here")
    parser.add_argument("--runs", type=int, default=4, help="trajectories of the released code")
    integers(parser, steps=100, repeats=7, threads=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    theirs = released(options.code, options.runs, options.steps)
    problem = training_problem(UPDATE_TELE, options.batch)
    meta = MetaOptimizer(UPDATE_TELE.networks, seed=0)
    ways = {
        "all_steps": lambda: train(UPDATE_TELE, problem, meta, options.steps),
        "ending": ending(options.batch, options.steps),
    }
    results = {}
    for name, way in ways.items():
        result = interleaved(way, theirs, options.repeats)
        trajectories = options.runs / options.batch  # theirs over ours, in one call of each
        results[name] = {
            "seconds_per_trajectory_here": result["first_seconds"] / options.batch,
            "seconds_per_trajectory_released": result["second_seconds"] / options.runs,
            **{key: result[key] * trajectories for key in ("ratio", "ratio_min", "ratio_max")},
        }
    name = "LSTM(update,tele) training, here / the released code"
    arguments = {key: value for key, value in vars(options).items() if key != "code"}
    print(json.dumps({"benchmark": name, **arguments, **results}))


if __name__ == "__main__":
    main()
