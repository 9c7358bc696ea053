"""Estimators of the meta-gradient, behind one interface: the windows of a trajectory.

"truncated" backpropagates through each window. It ends at the window's start and goes through no
input of an LSTM, so it is biased, with little variance. "first_order" goes through no gradient
either, as in Andrychowicz et al. (2016) and the paper's released code. "pes" only compares losses:
unbiased, with much variance.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metaopt.evaluation.rollout import rollout
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.tasks import TaskBatch
from metaopt.training.meta_loss import MetaLoss
from metaopt.training.unroll import Window, meta_parameters, unroll

if TYPE_CHECKING:  # the spec checks its ``estimator`` against the table below
    from metaopt.training.spec import TrainingSpec

Estimator = Callable[[TaskBatch, LearnedOptimizer, int, int, MetaLoss], Iterator[Window]]
"""(problem, optimizer, steps, window, meta-loss) -> each window with its meta-gradient, one for
each parameter of ``optimizer.meta`` that requires one. The parameters may be changed in place
between windows; the estimator itself changes neither them nor the problem."""


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
                    own_problem, own_optimizer, count, measure_defects=False, first_step=start
                )
                losses.append(run.losses[1:])
                values.append(meta_loss(losses[-1]))
                refused = refused + run.refused.sum()
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


ESTIMATORS: dict[str, Callable[[TrainingSpec, torch.Generator], Estimator]] = {
    "truncated": lambda spec, generator: unroll,
    "first_order": lambda spec, generator: partial(unroll, second_order=False),
    "pes": lambda spec, generator: partial(
        persistent_evolution, sigma=spec.pes_sigma, pairs=spec.pes_pairs, generator=generator
    ),
}
"""Estimators by name, from a spec and the generator of all that they draw."""
