"""Estimators of the meta-gradient: how the gradient of a meta-loss reaches the meta-parameters.

The meta-parameters are the weights of m1 (the update network) and m2 (the group-element network).
A trajectory, which is one run of the learned optimizer on a batch of tasks, is cut into windows,
and each window gives one estimate.

- "truncated" backpropagates through the steps of a window. It stops at the start of the window
  and at the inputs of the LSTMs, so it is biased and has little variance.
- "first_order" also treats the gradients that the steps are made of as constants, as in
  Andrychowicz et al. (2016) and the paper's released code.
- "pes" compares losses at perturbed meta-parameters. It is unbiased and has much variance.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

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
    """An estimator of the meta-gradient of a trajectory.

    A subclass is a frozen dataclass, whose fields are flags of ``train_meta.py``.

    Attributes:
        draws: whether it draws random numbers. Each part of a batch has its own.
    """

    draws: ClassVar[bool] = True

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
        """Run a trajectory window by window, and estimate the meta-gradient of each window.

        The parameters of ``optimizer.meta`` may be changed in place between windows. The estimator
        itself changes neither them nor the tasks.

        Args:
            problem: the batch of B tasks, at its initial weights.
            optimizer: a fresh optimizer of the batch.
            steps: length of the trajectory.
            window: steps in a window, K; the last window may be shorter.
            meta_loss: the function of a window's losses whose gradient is estimated.
            generator: the source of all random choices.

        Yields:
            Windows with one gradient for each parameter of ``optimizer.meta`` that requires one.
        """


ESTIMATORS: Registry[type[Estimator]] = Registry("estimator")
"""Estimators of the meta-gradient by name, the values of ``--estimator``."""


class Backpropagation(Estimator):
    """Backpropagation through the steps of each window (algorithm 1).

    Attributes:
        second_order: whether it goes through the gradients that the steps are made of.
    """

    draws: ClassVar[bool] = False
    second_order: ClassVar[bool]

    def windows(
        self,
        problem: TaskBatch,
        optimizer: LearnedOptimizer,
        steps: int,
        window: int,
        meta_loss: MetaLoss,
        generator: torch.Generator,
    ) -> Iterator[Window]:
        """Backpropagate through each window. See :meth:`Estimator.windows`."""
        return unroll(problem, optimizer, steps, window, meta_loss, self.second_order)


@ESTIMATORS.register("truncated")
@final
@dataclass(frozen=True)
class Truncated(Backpropagation):
    """Backpropagation through the steps of each window (algorithm 1)."""

    second_order: ClassVar[bool] = True


@ESTIMATORS.register("first_order")
@final
@dataclass(frozen=True)
class FirstOrder(Backpropagation):
    """Backpropagation through each window that treats the tasks' gradients as constants."""

    second_order: ClassVar[bool] = False


@ESTIMATORS.register("pes")
@final
@dataclass(frozen=True)
class PersistentEvolution(Estimator):
    """Persistent evolution strategies, which compare losses at perturbed meta-parameters.

    Each pair of trajectories starts at the tasks' weights, and keeps its weights and LSTM states
    from window to window. In a window it is stepped at theta + eps and at theta - eps, with a fresh
    eps ~ N(0, pes_sigma^2). Let xi be the sum of the pair's eps so far. The estimate is

        xi (L(theta + eps) - L(theta - eps)) / (2 pes_sigma^2),    mean over pairs.

    Through xi it counts the effect of earlier windows on this window's meta-loss L. Summed over the
    windows, at fixed theta, it is an unbiased gradient of the summed meta-loss of the whole
    trajectory, smoothed by eps. What the networks take as input counts as a function of theta too.

    Source: Vicol, Metz and Sohl-Dickstein (2021), arXiv 2112.13835.

    Attributes:
        pes_sigma: standard deviation of the perturbations of the meta-parameters.
        pes_pairs: pairs of trajectories, stepped at theta + eps and at theta - eps.
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
        """Compare the losses of pairs of trajectories. See :meth:`Estimator.windows`.

        The meta-loss of a window is the mean over all trajectories. Their losses stand side by
        side, ``(K, 2 * pes_pairs * B)``. Rejected teleportations are counted over all of them.
        """
        sigma, pairs, theta = self.pes_sigma, self.pes_pairs, meta_parameters(optimizer)
        runs = [[copy.deepcopy((problem, optimizer)) for _ in range(2)] for _ in range(pairs)]
        sums = [[torch.zeros_like(p) for p in theta] for _ in range(pairs)]
        rejected = torch.zeros((), dtype=torch.long, device=problem.x.device)
        for start in range(0, steps, window):
            gradients = [torch.zeros_like(p) for p in theta]
            losses: list[Tensor] = []
            values: list[Tensor] = []
            for pair, xi in zip(runs, sums, strict=True):
                eps = [
                    sigma * torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device)
                    for p in theta
                ]
                for sign, (own_tasks, own_optimizer) in zip((1, -1), pair, strict=True):
                    _perturb(own_optimizer, theta, eps, sign)
                    count = min(window, steps - start)
                    run = rollout(
                        own_tasks, own_optimizer, count, measure_invariance=False, first_step=start
                    )
                    losses.append(run.losses[1:])
                    values.append(meta_loss(losses[-1]))
                    rejected = rejected + run.rejected.sum()
                difference = (values[-2] - values[-1]) / (2 * sigma * sigma)
                for gradient, total, shift in zip(gradients, xi, eps, strict=True):
                    total += shift
                    gradient += difference * total / pairs
            yield Window(torch.stack(values).mean(), gradients, torch.cat(losses, dim=1), rejected)


@torch.no_grad()
def _perturb(copied: LearnedOptimizer, theta: list[Tensor], eps: list[Tensor], sign: int) -> None:
    """Write theta + sign eps into a copy of the optimizer."""
    for own, parameter, shift in zip(meta_parameters(copied), theta, eps, strict=True):
        own.copy_(parameter + sign * shift)
