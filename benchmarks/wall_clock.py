"""Seconds to a loss, one problem alone: the shipped LSTM(update,tele) against Levenberg-Marquardt.

Whole steps are timed, each with its forward, backward and observation. At width 64 a step of
Levenberg-Marquardt takes seconds and a gigabyte.

python benchmarks/wall_clock.py [--width 20] [--loss 1e-6] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from command import integers

from metaopt.learned.checkpoint import load_meta_optimizer
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.optim import LevenbergMarquardt
from metaopt.tasks import Regression, RegressionFamily

Build = Callable[[Regression], torch.optim.Optimizer]


def seconds_to(problem: Regression, build: Build, target: float, most: int) -> tuple[float, int]:
    """(seconds, steps) until the loss is at most ``target``.

    Raises:
        SystemExit: if it never is.
    """
    optimizer = build(problem)
    loss = torch.tensor([])

    def closure() -> torch.Tensor:
        nonlocal loss
        problem.zero_grad(set_to_none=True)
        loss = problem()
        loss.sum().backward()
        return loss.detach()

    start = time.perf_counter()
    for step in range(most + 1):
        closure()
        if loss.item() <= target:
            return time.perf_counter() - start, step
        optimizer.step()
    raise SystemExit(f"expected a loss of {target:g} within {most} steps: give more with --most")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    integers(parser, width=20, problems=3, most=200, threads=1)
    parser.add_argument("--loss", type=float, default=1e-6, help="to be reached")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    meta = load_meta_optimizer("lstm_update_tele_v1")
    family = RegressionFamily.square(options.width)
    ways: dict[str, Build] = {
        "learned": lambda problem: LearnedOptimizer(problem, meta),
        "levenberg_marquardt": LevenbergMarquardt,
    }
    results = {}
    for name, build in ways.items():
        seconds_to(family.sample([10**6]), build, options.loss, options.most)  # a warm-up
        runs = [
            seconds_to(family.sample([10**6 + i]), build, options.loss, options.most)
            for i in range(options.problems)
        ]
        results[name] = {
            "seconds": statistics.median(seconds for seconds, _ in runs),
            "steps": statistics.median(steps for _, steps in runs),
        }
    ratio = results["learned"]["seconds"] / results["levenberg_marquardt"]["seconds"]
    name = "seconds to a loss, learned / Levenberg-Marquardt"
    print(json.dumps({"benchmark": name, **vars(options), "ratio": ratio, **results}))


if __name__ == "__main__":
    main()
