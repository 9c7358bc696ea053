"""LSTM(update) training here against JAX, jit and scan, doing the same mathematics; one thread.

JAX is no dependency: install it where the script runs. Before anything is timed, both start from
the same networks and problems and must agree: on the losses of 30 steps, and on the meta-gradient
of the first window. Compilation is not timed. JAX is faster when it recomputes the steps of a
window in their backward pass, so it does, unless --no-recompute is given.

python benchmarks/against_jax.py [--layers 2] [--batch 8] [--no-recompute]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace

import numpy as np
import torch
from command import integers
from interleaved import interleaved
from trajectory import UPDATE, training_problem, windows

from metaopt.learned.meta_optimizer import MetaOptimizer
from metaopt.tasks import RegressionFamily

ONE_THREAD = {
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "OMP_NUM_THREADS": "1",
    "NPROC": "1",  # the size of XLA's own pool of threads
    "JAX_PLATFORMS": "cpu",
}
CHECKED_STEPS, TOLERANCE = 30, 1e-3
WINDOW, FLOOR = UPDATE.training.window, UPDATE.training.log_floor


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest, relative to the largest entry."""
    return float(np.abs(ours - theirs).max() / np.abs(ours).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    integers(parser, layers=2, batch=8, steps=100, repeats=7)
    parser.add_argument("--recompute", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    if options.steps % WINDOW:
        sys.exit(f"expected --steps in whole windows of {WINDOW}, got {options.steps}")
    os.environ.update(ONE_THREAD)  # read when JAX is imported
    try:
        from jax_trajectory import Training, networks_of, start_of
    except ImportError:
        sys.exit("this benchmark needs JAX: pip install jax")
    torch.set_num_threads(1)
    meta = MetaOptimizer(replace(UPDATE.networks, layers=options.layers), seed=0)
    problem = training_problem(UPDATE, options.batch)
    networks, start = networks_of(meta), start_of(meta, problem)
    training = Training(problem, RegressionFamily().slope, WINDOW, FLOOR, options.recompute)

    here = list(windows(UPDATE, problem, meta, CHECKED_STEPS))
    losses, gradients = training.run(networks, start, CHECKED_STEPS)
    ours = np.concatenate([window.losses.numpy() for window in here])
    agreement = {
        "losses_difference": float(np.abs(losses / ours - 1).max()),
        "meta_gradient_difference": max(
            difference(gradient.numpy(), np.asarray(gradients[name]))
            for (name, _), gradient in zip(meta.named_parameters(), here[0].gradients, strict=True)
        ),
    }
    if not max(agreement.values()) < TOLERANCE:
        sys.exit(f"expected both to agree within {TOLERANCE}, got {agreement}")

    result = interleaved(
        lambda: list(windows(UPDATE, problem, meta, options.steps)),
        lambda: training.run(networks, start, options.steps),
        options.repeats,
    )
    seconds = {
        "seconds_per_trajectory_here": result["first_seconds"] / options.batch,
        "seconds_per_trajectory_jax": result["second_seconds"] / options.batch,
    }
    name = "LSTM(update) training, here / JAX"
    print(json.dumps({"benchmark": name, **vars(options), **agreement, **result, **seconds}))


if __name__ == "__main__":
    main()
