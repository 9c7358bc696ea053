"""Estimators of the meta-gradient, by name, behind one interface: the windows of a trajectory.

"truncated" backpropagates through each window. It ends at the window's start and goes through no
input of an LSTM, so it is biased, with little variance. "first_order" goes through no gradient
either, as in Andrychowicz et al. (2016) and the paper's released code. "pes" only compares losses:
unbiased, with much variance.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from metaopt.checks import check_positive, check_whole
from metaopt.evaluation.rollout import rollout
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.registry import Registry
from metaopt.tasks import TaskBatch
from metaopt.training.meta_loss import MetaLoss
from metaopt.training.unroll import Window, meta_parameters, unroll


class Estimator(ABC):
    """An estimator of the meta-gradient. A subclass is a frozen dataclass of its own fields."""

    @abstractmethod
    def windows(
        self,
        problem: TaskBatch,
        optimizer: LearnedOptimizer,
        steps: int,
        window: int,
        meta_loss: MetaLoss,
        generator: torch.Generator,
    ) -> Iterator[Window]:
        """Each window of a trajectory with its meta-gradient.

        The parameters of ``optimizer.meta`` may be changed in place between windows; the estimator
        itself changes neither them nor the problem.

        Args:
            problem: the batch of tasks, at its initial weights.
            optimizer: a fresh optimizer of the batch.
            steps: of the trajectory.
            window: steps between two meta-gradients.
            meta_loss: what a window's losses are worth.
            generator: of all that the estimator draws.

        Yields:
            Windows, whose gradients are one for each parameter of ``optimizer.meta`` that requires
            one.
        """


ESTIMATORS: Registry[type[Estimator]] = Registry("estimator")
"""Estimators of the meta-gradient by name."""


@ESTIMATORS.register("truncated")
@final
@dataclass(frozen=True)
class Truncated(Estimator):
    """Backpropagation through each window."""

    def windows(
        self,
        problem: TaskBatch,
        optimizer: LearnedOptimizer,
        steps: int,
        window: int,
        meta_loss: MetaLoss,
        generator: torch.Generator,
    ) -> Iterator[Window]:
        return unroll(problem, optimizer, steps, window, meta_loss)


@ESTIMATORS.register("first_order")
@final
@dataclass(frozen=True)
class FirstOrder(Estimator):
    """The same, with the gradients that steps are made of as constants."""

    def windows(
        self,
        problem: TaskBatch,
        optimizer: LearnedOptimizer,
        steps: int,
        window: int,
        meta_loss: MetaLoss,
        generator: torch.Generator,
    ) -> Iterator[Window]:
        return unroll(problem, optimizer, steps, window, meta_loss, second_order=False)


@ESTIMATORS.register("pes")
@final
@dataclass(frozen=True)
class PersistentEvolution(Estimator):
    """Persistent evolution strategies: see :func:`persistent_evolution`.

    Attributes:
        pes_sigma: standard deviation of the perturbations of the meta-parameters under "pes".
        pes_pairs: antithetic pairs of trajectories under "pes".
    """

    pes_sigma: float = 0.01
    pes_pairs: int = 1

    def __post_init__(self) -> None:
        check_positive("pes_sigma", self.pes_sigma, type(self).pes_sigma)
        check_whole("pes_pairs", self.pes_pairs)

    def windows(
        self,
        problem: TaskBatch,
        optimizer: LearnedOptimizer,
        steps: int,
        window: int,
        meta_loss: MetaLoss,
        generator: torch.Generator,
    ) -> Iterator[Window]:
        return persistent_evolution(
            problem,
            optimizer,
            steps,
            window,
            meta_loss,
            sigma=self.pes_sigma,
            pairs=self.pes_pairs,
            generator=generator,
        )


def persistent_evolution(
    problem: TaskBatch,
    optimizer: LearnedOptimizer,
    steps: int,
    window: int,
    meta_loss: MetaLoss,
    *,
    sigma: float,
    pairs: int,
    generator: torch.Generator,
) -> Iterator[Window]:
    """Persistent evolution strategies (Vicol, Metz and Sohl-Dickstein 2021, arXiv 2112.13835).

    Each pair of trajectories starts at the problem's weights and keeps its weights and LSTM
    states from window to window. In a window it is stepped at theta + eps and theta - eps, with a
    fresh eps ~ N(0, sigma^2); xi is the sum of the pair's eps so far. The estimate

        xi (L(theta + eps) - L(theta - eps)) / (2 sigma^2),    mean over pairs,

    counts the effect of earlier windows on this one's meta-loss L through xi. Summed over the
    windows it is, at fixed theta, an unbiased gradient of the whole trajectory's summed
    meta-loss, smoothed by eps; what the networks see counts as the function of theta it is.

    Yields:
        Windows whose meta-loss is the mean over all trajectories; their losses stand side by side,
        ``(K, 2 pairs B)``, and refusals are counted over all of them.
    """
    theta = meta_parameters(optimizer)
    runs = [[copy.deepcopy((problem, optimizer)) for _ in range(2)] for _ in range(pairs)]
    sums = [[torch.zeros_like(p) for p in theta] for _ in range(pairs)]
    refused = torch.zeros((), dtype=torch.long, device=problem.x.device)
    for start in range(0, steps, window):
        gradients = [torch.zeros_like(p) for p in theta]
        losses: list[Tensor] = []
        values: list[Tensor] = []
        for pair, xi in zip(runs, sums, strict=True):
            eps = [
                sigma * torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device)
                for p in theta
            ]
            for sign, (own_problem, own_optimizer) in zip((1, -1), pair, strict=True):
                _perturb(own_optimizer, theta, eps, sign)
                count = min(window, steps - start)
                run = rollout(
                    own_problem, own_optimizer, count, measure_invariance=False, first_step=start
                )
                losses.append(run.losses[1:])
                values.append(meta_loss(losses[-1]))
                refused = refused + run.rejected.sum()
            slope = (values[-2] - values[-1]) / (2 * sigma * sigma)
            for gradient, total, shift in zip(gradients, xi, eps, strict=True):
                total += shift
                gradient += slope * total / pairs
        yield Window(torch.stack(values).mean(), gradients, torch.cat(losses, dim=1), refused)


@torch.no_grad()
def _perturb(copied: LearnedOptimizer, theta: list[Tensor], eps: list[Tensor], sign: int) -> None:
    """Write theta + sign eps into a copy of the optimizer."""
    for own, parameter, shift in zip(meta_parameters(copied), theta, eps, strict=True):
        own.copy_(parameter + sign * shift)
