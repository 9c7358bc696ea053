"""Seconds of a meta-step of PES here over google/learned_optimization (JAX); one thread.

Both train a learned optimizer on copies of one perceptron on 8x8 pictures of noise: as many tasks,
two particles each, windows as long, Adam on the meta-parameters. Here the rule is an LSTM for each
tensor (``--update layerwise``, 16 hidden units, 1,715 meta-parameters). There it is NNAdam, the
same kind of rule (2,408), and MLPLOpt, a network for each weight (1,762), which its example trains.
So what is compared is a meta-step, not how well it trains. Compilation is not timed.

JAX and learned_optimization are no dependencies. The latter is a checkout on PYTHONPATH:

pip install jax flax dm-haiku optax chex gin-config absl-py
python benchmarks/pes_against_learned_optimization.py [--tasks 16] [--batch 128] [--window 50]
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from command import integers
from interleaved import interleaved
from torch import Tensor, nn
from torch.nn import functional as F

from metaopt.learned import MetaOptimizerSpec
from metaopt.tasks import Task
from metaopt.training import Trainer, TrainingSpec

ONE_THREAD = {
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "OMP_NUM_THREADS": "1",
    "NPROC": "1",  # the size of XLA's own pool of threads
    "JAX_PLATFORMS": "cpu",
}
HIDDEN, RATE = 16, 1e-3
SIZES = {"batch": 128, "width": 32, "layers": 1}


class Perceptron(Task):
    """Linear layers on 8x8 pictures of noise, one batch for all seeds."""

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Flatten()]
        widths = [64, *[SIZES["width"]] * SIZES["layers"]]
        for rows, columns in itertools.pairwise(widths):
            layers += [nn.Linear(rows, columns), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(widths[-1], 10))

    def batches(self, seed: int, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        pictures, labels = data()
        while True:
            yield torch.from_numpy(pictures), torch.from_numpy(labels).long()

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])


def data() -> tuple[np.ndarray, np.ndarray]:
    """The batch that both have."""
    random = np.random.default_rng(0)
    pictures = random.standard_normal((SIZES["batch"], 8, 8, 1), dtype=np.float32)
    return pictures, random.integers(0, 10, SIZES["batch"]).astype(np.int32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    integers(parser, tasks=16, window=50, windows=4, repeats=7, **SIZES)
    options = parser.parse_args()
    SIZES.update({name: getattr(options, name) for name in SIZES})
    os.environ.update(ONE_THREAD)  # read when JAX is imported
    try:
        from learned_optimization_pes import RULES, MetaTraining
    except ImportError as error:
        sys.exit(f"this benchmark needs JAX and google/learned_optimization: {error}")
    torch.set_num_threads(1)
    steps = options.window * options.windows
    spec = TrainingSpec(
        problems="task",
        task="__main__:Perceptron",
        trajectories=10**9,
        batch_size=options.tasks,
        steps=steps,
        window=options.window,
        estimator="pes",
        meta_loss="sum",
        learning_rate_update=RATE,
        pes_staggered=True,
    )
    networks = MetaOptimizerSpec(update="layerwise", element="none", hidden=HIDDEN)
    here = Trainer(networks, spec)
    found: dict[str, Any] = {}
    for rule in RULES:
        there = MetaTraining(
            rule,
            HIDDEN,
            *data(),
            [options.width] * options.layers,
            options.tasks,
            steps,
            options.window,
            RATE,
        )
        result = interleaved(
            here.train_batch, lambda t=there: t.run(options.windows), options.repeats
        )
        if not math.isfinite(there.run(1)) or here.skipped:
            sys.exit("expected finite losses of both, got others")
        found[rule] = {
            "seconds_per_meta_step_here": result["first_seconds"] / options.windows,
            "seconds_per_meta_step_there": result["second_seconds"] / options.windows,
            "ratio": result["ratio"],
            "ratio_min": result["ratio_min"],
            "ratio_max": result["ratio_max"],
            "meta_parameters_there": there.meta_parameters,
        }
    count = sum(p.numel() for p in here.meta.parameters())
    name = "PES, here / learned_optimization"
    print(json.dumps({"benchmark": name, **vars(options), "meta_parameters": count, **found}))


if __name__ == "__main__":
    main()
