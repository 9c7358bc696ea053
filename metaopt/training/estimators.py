"""Estimators of the meta-gradient: how the gradient of a meta-loss reaches the meta-parameters.

The meta-parameters are the weights of m1 (the update network) and m2 (the group-element network).
A trajectory, which is one run of the learned optimizer on a batch of tasks, is cut into windows,
and each window gives one estimate.

- "truncated" backpropagates through the steps of a window. It stops at the start of the window
  and at the inputs of the LSTMs, so it is biased and has little variance.
- "first_order" also treats the gradients that the steps are made of as constants, as in
  Andrychowicz et al. (2016) and the paper's released code.
- "pes" compares losses at perturbed meta-parameters. It is unbiased and has much variance.
- "es" does too, a window by itself: biased as "truncated" is, at less variance than "pes".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from metaopt.checks import check_positive, check_whole
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.registry import Registry
from metaopt.tasks import TaskBatch
from metaopt.training.meta_loss import MetaLoss
from metaopt.training.particles import particles
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

    recompute: int
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
        return unroll(
            problem, optimizer, steps, window, meta_loss, self.second_order, self.recompute
        )


@dataclass(frozen=True)
class BackpropagationFields:
    """The field that both forms of backpropagation share.

    Attributes:
        recompute: how many steps the graph is held of at a time; 0 for the whole window. Each step
            is taken twice then, for memory that does not grow with the window.
    """

    recompute: int = 0

    def __post_init__(self) -> None:
        check_whole("recompute", self.recompute, 0)


@ESTIMATORS.register("truncated")
@final
@dataclass(frozen=True)
class Truncated(BackpropagationFields, Backpropagation):
    """Backpropagation through the steps of each window (algorithm 1)."""

    second_order: ClassVar[bool] = True


@ESTIMATORS.register("first_order")
@final
@dataclass(frozen=True)
class FirstOrder(BackpropagationFields, Backpropagation):
    """Backpropagation through each window that treats the tasks' gradients as constants."""

    second_order: ClassVar[bool] = False


class Evolution(Estimator):
    """An evolution strategy, which compares losses at perturbed meta-parameters.

    Each task has pairs of particles, all of which start at its weights, and keep their weights and
    states from window to window. In a window a pair is stepped at theta + eps and at theta - eps,
    with a fresh eps ~ N(0, pes_sigma^2) of its own. The estimate is

        xi (L(theta + eps) - L(theta - eps)) / (2 pes_sigma^2),    mean over pairs and tasks,

    with L the meta-loss of the window on the task. What xi is, a subclass says.
    """

    persistent: ClassVar[bool]
    pes_sigma: float
    pes_pairs: int
    pes_staggered: bool
    pes_held_out: int

    def windows(
        self,
        problem: TaskBatch,
        optimizer: LearnedOptimizer,
        steps: int,
        window: int,
        meta_loss: MetaLoss,
        generator: torch.Generator,
    ) -> Iterator[Window]:
        """Compare the losses of pairs of particles. See :meth:`Estimator.windows`.

        The meta-loss of a window is the mean over all particles. Their losses stand side by side,
        ``(K, 2 * pes_pairs * B)``, or ``(1, 2 * pes_pairs * B)`` where they are held-out ones.
        First are those at theta + eps of the first pair of each task, then those at theta - eps,
        then the next pair. Rejected teleportations are counted over all of them.
        """
        sigma, pairs, tasks = self.pes_sigma, self.pes_pairs, problem.batch
        theta = meta_parameters(optimizer)
        runs = particles(problem, optimizer, 2 * pairs)
        xi = [p.new_zeros(pairs, tasks, *p.shape) for p in theta]
        rejected = torch.zeros((), dtype=torch.long, device=problem.x.device)
        starts = range(0, steps, window)
        for number, start in enumerate(starts):
            if again := self._again(number, len(starts), tasks):
                for total in xi:
                    total[:, again] = 0.0
                runs.restart([c * tasks + b for c in range(2 * pairs) for b in again])
            shapes = [(pairs, tasks, *p.shape) for p in theta]
            drawn = [
                torch.randn(shape, generator=generator, dtype=p.dtype)
                for p, shape in zip(theta, shapes, strict=True)
            ]
            eps = [sigma * own.to(p.device) for p, own in zip(theta, drawn, strict=True)]
            with torch.no_grad():
                both = [
                    torch.stack((p + e, p - e), dim=1).flatten(0, 2)
                    for p, e in zip(theta, eps, strict=True)
                ]
            losses, more = runs.advance(both, start, min(window, steps - start))
            rejected = rejected + more
            if self.pes_held_out:
                losses = runs.held_out(self.pes_held_out)
            values = torch.stack([meta_loss(own.unsqueeze(1)) for own in losses.unbind(dim=1)])
            plus, minus = values.view(pairs, 2, tasks).unbind(dim=1)
            difference = (plus - minus) / (2 * sigma * sigma * pairs * tasks)
            gradients = []
            for index, shift in enumerate(eps):
                xi[index] = xi[index] + shift if self.persistent else shift
                weights = difference.to(shift).view(pairs, tasks, *[1] * (shift.dim() - 2))
                gradients.append((weights * xi[index]).sum(dim=(0, 1)))
            yield Window(values.mean(), gradients, losses, rejected)

    def _again(self, number: int, windows: int, tasks: int) -> list[int]:
        """The tasks whose particles start again before a window."""
        if not self.pes_staggered:
            return []
        return [b for b in range(1, tasks) if windows - b * windows // tasks == number]


@dataclass(frozen=True)
class EvolutionFields:
    """The fields that all evolution strategies share.

    Attributes:
        pes_sigma: standard deviation of the perturbations of the meta-parameters.
        pes_pairs: pairs of particles of each task, stepped at theta + eps and at theta - eps.
        pes_staggered: whether the tasks of a batch are at different ages. Task b of B starts again
            at its initial weights b/B of the horizon before the end.
        pes_held_out: how many batches of the validation split the meta-loss of a window is taken
            on, after its last step; 0 for the training batches of its steps. With it, networks
            learn what generalizes. For tasks of --task.
    """

    pes_sigma: float = 0.01
    pes_pairs: int = 1
    pes_staggered: bool = False
    pes_held_out: int = 0

    def __post_init__(self) -> None:
        check_positive("pes_sigma", self.pes_sigma, EvolutionFields.pes_sigma)
        check_whole("pes_pairs", self.pes_pairs)
        check_whole("pes_held_out", self.pes_held_out, 0)


@ESTIMATORS.register("pes")
@final
@dataclass(frozen=True)
class PersistentEvolution(EvolutionFields, Evolution):
    """Persistent evolution strategies, which compare losses at perturbed meta-parameters.

    xi is the sum of the pair's eps since its particles started. Through it the estimate counts the
    effect of earlier windows on this window's meta-loss. Summed over the windows, at fixed theta,
    it is an unbiased gradient of the summed meta-loss of the whole trajectory, smoothed by eps.
    What the networks take as input counts as a function of theta too.

    Source: Vicol, Metz and Sohl-Dickstein (2021), arXiv 2112.13835.
    """

    persistent: ClassVar[bool] = True


@ESTIMATORS.register("es")
@final
@dataclass(frozen=True)
class TruncatedEvolution(EvolutionFields, Evolution):
    """Truncated evolution strategies: each window by itself.

    xi is the pair's eps in this window. So the effect of earlier windows is left out, as by
    truncated backpropagation; the variance does not grow with the horizon.

    Source: Metz et al. (2019), arXiv 1810.10180.
    """

    persistent: ClassVar[bool] = False
