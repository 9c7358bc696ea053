"""Stochastic problems whose constants are known, and SGD on them with a teleport before each step.

A problem has k samples, equally likely, so that expectations over a sample are exact; those over
a run are means over seeds, with standard errors, all seeds in one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from studies.geometry.bounds import BasinBounds
from studies.geometry.rotations import EllipticOrbits

SURE = 4.0  # standard errors that a mean over seeds may be off by

Array = NDArray[np.float64]
Map = Callable[[Tensor], Tensor]


class Expected(NamedTuple):
    """Exact expectations over runs of SGD, for t = 0, ..., T, ``(T + 1,)`` each."""

    excess: Array  # E [L(w_t) - L*]
    largest: Array  # E max_g ||grad L(g.w_t)||^2


@final
@dataclass(frozen=True, eq=False)
class StochasticProblem:
    """L(w) = mean_i L(w, i) with a group that leaves L, not each L(., i), as it is.

    Attributes:
        beta: every L(., i) is beta-smooth.
        sigma2: L(w*) - mean_i inf_w L(w, i).
        start: w_0, ``(n,)``.
        lowest: L(w*).
        loss: L, ``(*batch, n)`` -> ``(*batch,)``.
        samples: the gradients of all samples, ``(*batch, n)`` -> ``(*batch, k, n)``.
        steepest: w -> g.w of the largest ||grad L||, ``(m, n)`` -> ``(m, n)``.
        how: how each constant was obtained.
        mu: of the PL inequality.
        orbits: where they are ellipsoids around w*.
        expected: (eta, T, teleport) -> expectations, where these have a closed form.
    """

    name: str
    beta: float
    sigma2: float
    start: Tensor
    lowest: float
    loss: Map
    samples: Map
    steepest: Map
    how: Mapping[str, str]
    mu: float | None = None
    orbits: EllipticOrbits | None = None
    expected: Callable[[float, int, bool], Expected] | None = None

    def gradient(self, w: Tensor) -> Tensor:
        """grad L, ``(*batch, n)``."""
        return self.samples(w).mean(-2)

    @property
    def gap(self) -> float:
        """The gap L(w_0) - L(w*) at the start."""
        return float(self.loss(self.start)) - self.lowest

    def bounds(self, steps: int) -> BasinBounds:
        """The right-hand sides for T = steps."""
        return BasinBounds(self.beta, self.sigma2, self.gap, steps, self.mu)


class Means(NamedTuple):
    """Over seeds, at each t."""

    mean: Array
    error: Array  # the standard error of the mean

    @property
    def upper(self) -> Array:
        """What the expectation does not exceed, up to chance."""
        return self.mean + SURE * self.error


class Run(NamedTuple):
    """SGD at w_0, ..., w_{T-1}; the excess at w_T too."""

    largest: Means  # E max_g ||grad L(g.w_t)||^2
    gradient: Means  # E ||grad L(w_t)||^2
    excess: Means  # E [L(w_t) - L*], (T + 1,)
    distance: Means | None  # E max_g ||g.w_t - w*||
    squared_distance: Means | None


def _means(per_step: list[Tensor]) -> Means:
    values = torch.stack(per_step)  # (T, seeds)
    error = values.std(dim=-1) / values.shape[-1] ** 0.5
    return Means(values.mean(-1).numpy(), error.numpy())


def sgd(
    problem: StochasticProblem,
    steps: int,
    seeds: int,
    generator: torch.Generator,
    teleport: bool = True,
) -> Run:
    """w_{t+1} = v - eta grad L(v, xi_t) with v = g_t.w_t (eqs. 5, 6), or v = w_t without teleports.

    eta is that of Theorem 3.1 for T = steps; T steps are made, for L(w_T).
    """
    eta = problem.bounds(steps).learning_rate
    w = problem.start.expand(seeds, -1)
    largest, gradient, excess, farthest = [], [], [problem.loss(w) - problem.lowest], []
    for _ in range(steps):
        steepest = problem.steepest(w)
        largest.append(problem.gradient(steepest).square().sum(-1))
        gradient.append(problem.gradient(w).square().sum(-1))
        if problem.orbits is not None:
            farthest.append(problem.orbits.farthest(w))
        v = steepest if teleport else w
        slopes = problem.samples(v)
        drawn = torch.randint(slopes.shape[-2], (seeds,), generator=generator)
        w = v - eta * slopes[torch.arange(seeds), drawn]
        excess.append(problem.loss(w) - problem.lowest)
    return Run(
        _means(largest),
        _means(gradient),
        _means(excess),
        _means(farthest) if farthest else None,
        _means([d.square() for d in farthest]) if farthest else None,
    )


def cloud(problem: StochasticProblem, generator: torch.Generator, count: int = 200) -> Tensor:
    """Points around the start and the minimum, and the steepest and flattest of their orbits."""
    n = len(problem.start)
    size = problem.start.norm() * 2 * torch.rand(count, 1, generator=generator, dtype=torch.float64)
    w = problem.start / 2 + size * torch.randn(count, n, generator=generator, dtype=torch.float64)
    extremes = [problem.steepest(w)] + ([problem.orbits.flattest(w)] if problem.orbits else [])
    return torch.cat([w, *extremes])
