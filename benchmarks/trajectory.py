"""One training trajectory, as the trainer drives it: windows of ten steps, Adam after each."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from metaopt.learned.meta_optimizer import MetaOptimizer
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.problems import Regression, RegressionFamily
from metaopt.training.meta_loss import log_mean
from metaopt.training.unroll import Window, unroll

WINDOW, FLOOR = 10, 1e-6


def training_problem(batch: int) -> Regression:
    return RegressionFamily().sample(range(10**7, 10**7 + batch))


def windows(problem: Regression, meta: MetaOptimizer, steps: int) -> Iterator[Window]:
    """Each window, after its meta-step."""
    adam = torch.optim.Adam(meta.parameters(), lr=1e-3)
    for window in unroll(problem, LearnedOptimizer(problem, meta), steps, WINDOW, log_mean(FLOOR)):
        for parameter, gradient in zip(meta.parameters(), window.gradients, strict=True):
            parameter.grad = gradient
        adam.step()
        yield window


def train(problem: Regression, meta: MetaOptimizer, steps: int) -> None:
    for _ in windows(problem, meta, steps):
        pass
