"""What the study of Newton's method measures: single steps, runs, and steps for Lemma C.1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from studies.functions.level_set_examples import falling_curvature
from studies.functions.quadratic import random_quadratic
from studies.functions.skewed import SkewedQuadratic, random_skewed
from studies.geometry.derivatives import derivatives, gradients, slope
from studies.geometry.level_sets import (
    damped_newton_step,
    on_level_set,
    order_of_convergence,
    steepest_point,
)
from studies.geometry.newton_bounds import Constants

Array = NDArray[np.float64]
Bound = Callable[[Any, Any, Constants], Array]


@dataclass(frozen=True)
class Teleported:
    """A teleport from w0 to w' and a gradient step to w1; the minimizer is 0."""

    constants: Constants
    damping: float  # gamma lambda_0
    multiplier: float  # lambda_0
    residual: float  # of the critical equations at w'
    largest: float  # lambda_max(H(w'))
    largest_at_start: float  # lambda_max(H(w0))
    distance_at_start: float  # ||w0||
    distance: float  # ||w'||
    distance_after: float  # ||w1||
    gradient_step: Array  # -gamma g(w'), (n,)
    newton_step: Array  # -gamma lambda_0 H(w')^-1 g(w'), (n,)
    gradient_at_start: Array  # -g(w0), (n,)
    newton_step_at_start: Array  # -H(w0)^-1 g(w0), (n,)
    steepest: float  # ||g(w')||
    steepest_tried: float  # the largest ||g|| at other points of the level set

    def facts(self) -> dict[str, Any]:
        """The measured numbers, for JSON."""
        names = (
            "damping multiplier residual largest largest_at_start distance_at_start distance "
            "distance_after steepest steepest_tried"
        )
        return {"n": len(self.gradient_step), **{n: getattr(self, n) for n in names.split()}}


@dataclass(frozen=True)
class Run:
    """Distances to the minimizer 0 along runs of one method; lists go over all their steps."""

    constants: Constants
    distances: list[list[float]]  # of each run, ||w|| from the start on
    before: list[float] = field(default_factory=list)  # ||w0||, before the teleport
    teleported: list[float] = field(default_factory=list)  # ||w'||, or ||w0|| where there is none
    after: list[float] = field(default_factory=list)  # ||w1||

    def pairs(self, teleported: bool = True) -> tuple[Array, Array]:
        """(before, after) of the steps that start below .03 and above 1e-11.

        Above it the error of w', 1e-15 of its length, does not show; below, the second order does.
        """
        first = np.array(self.teleported if teleported else self.before)
        second = np.array(self.after)
        kept = (first > 1e-11) & (first < 0.03) & (second > 0)
        return first[kept], second[kept]

    def facts(self) -> dict[str, Any]:
        """The distances and the fits."""
        fits = {
            "in the distance after the teleport": order_of_convergence(*self.pairs())._asdict(),
            "in the distance before it": order_of_convergence(*self.pairs(False))._asdict(),
        }
        return {"distances": self.distances, "after_teleport": self.teleported, "fits": fits}


@dataclass(frozen=True)
class Lemma:
    """Steps of Newton's method on functions with known constants; one entry a step."""

    distance: list[float]
    damping: list[float]
    after: list[float]
    constants: list[Constants]

    def bound(self, form: Bound) -> Array:
        """The bound of each step."""
        rows = zip(self.distance, self.damping, self.constants, strict=True)
        return np.array([float(form(*row)) for row in rows])

    def facts(self) -> dict[str, Any]:
        """The measured numbers, for JSON."""
        conditions = sorted({c.beta / c.mu for c in self.constants})
        return {
            "distance": self.distance,
            "damping": self.damping,
            "after": self.after,
            "L/mu": conditions,
        }


def constants_of(function: SkewedQuadratic) -> Constants:
    """Compute the constants of a function that its bounds need."""
    return Constants(function.mu, function.beta, function.lipschitz)


def teleported_steps(
    sizes: Sequence[int], starts: int, generator: torch.Generator
) -> list[Teleported]:
    """On one random function a size, from random points, with gamma lambda_0 of 1, 3/4, 1/2, ..."""
    found = []
    for n in sizes:
        function = random_skewed(n, 4.0, generator)
        for index in range(starts):
            w0 = torch.randn(n, generator=generator, dtype=torch.float64)
            damping = 1 - 0.25 * (index % 4)
            found.append(_teleported(function, w0, damping, generator))
    return found


def _teleported(
    function: SkewedQuadratic, w0: Tensor, damping: float, generator: torch.Generator
) -> Teleported:
    level = float(function(w0))
    reached = steepest_point(function, function.minimizer, level, generator)
    at, at_start = derivatives(function, reached.point), derivatives(function, w0)
    step = -damping / reached.multiplier * at.gradient
    newton = damped_newton_step(function, reached.point, damping) - reached.point
    others = on_level_set(
        function,
        function.minimizer,
        level,
        torch.randn(100, len(w0), generator=generator, dtype=torch.float64),
    )
    return Teleported(
        constants=constants_of(function),
        damping=damping,
        multiplier=reached.multiplier,
        residual=reached.residual,
        largest=float(torch.linalg.eigvalsh(at.hessian)[-1]),
        largest_at_start=float(torch.linalg.eigvalsh(at_start.hessian)[-1]),
        distance_at_start=float(w0.norm()),
        distance=float(reached.point.norm()),
        distance_after=float((reached.point + step).norm()),
        gradient_step=step.numpy(),
        newton_step=newton.numpy(),
        gradient_at_start=-at_start.gradient.numpy(),
        newton_step_at_start=(damped_newton_step(function, w0, 1.0) - w0).numpy(),
        steepest=reached.gradient_norm,
        steepest_tried=float(gradients(function, others).norm(dim=-1).max()),
    )


def descend(method: str, function: SkewedQuadratic, runs: int, generator: torch.Generator) -> Run:
    """Runs of "anew", "fixed" or "plain" from random points at distances from 1 to .1."""
    run = Run(constants_of(function), [])
    for index in range(runs):
        w = torch.randn(len(function.matrix), generator=generator, dtype=torch.float64)
        w = 0.1 ** (index / runs) * w / w.norm()
        run.distances.append([float(w.norm())])
        rate = 1 / function.beta
        near: list[Tensor] = []
        for step in range(400 if method == "plain" else 25):
            before = float(w.norm())
            if before < 1e-11:
                break
            if method != "plain":
                level = float(function(w))
                first = step == 0
                reached = steepest_point(
                    function,
                    function.minimizer,
                    level,
                    generator,
                    samples=256 if first else 16,
                    climbs=2 if first else 1,
                    near=near,
                )
                w, near = reached.point, [reached.point / reached.point.norm()]
                if first or method == "anew":
                    rate = 1 / reached.multiplier
            teleported = float(w.norm())
            w = w - rate * slope(function, w)
            run.before.append(before)
            run.teleported.append(teleported)
            run.after.append(float(w.norm()))
            run.distances[-1].append(float(w.norm()))
    return run


def lemma_steps(count: int, generator: torch.Generator) -> dict[str, Lemma]:
    """Steps of Newton's method from random points, and from where the lemma is tight.

    "skewed": L >= 2 mu and 0 <= lambda <= 1. "round": quadratics, G = 0, with L = 1.5 mu and
    lambda < 1, as all bounds are 0 at 1. "falling": ``falling_curvature`` with L = 10 mu from
    w = 1, lambda from 1 to 2.
    """
    found = {name: Lemma([], [], [], []) for name in ("skewed", "round", "falling")}

    def add(name: str, function: Any, w: Tensor, damping: float, constants: Constants) -> None:
        rows = found[name]
        rows.distance.append(float(w.norm()))
        rows.damping.append(damping)
        rows.after.append(float(damped_newton_step(function, w, damping).norm()))
        rows.constants.append(constants)

    skewed = random_skewed(3, 4.0, generator)
    round_ = random_quadratic(3, 1.5, generator)
    falling, tight = falling_curvature(1.0, 9.0), Constants(1.0, 10.0, 9.0)
    for damping in np.linspace(0, 1, max(count // 3, 2)).tolist():
        w = torch.randn(3, generator=generator, dtype=torch.float64)
        size = float(torch.rand((), generator=generator)) ** 3
        add("skewed", skewed, size * w, damping, constants_of(skewed))
        add("round", round_, w, 0.95 * damping, Constants(round_.mu, round_.beta, 0.0))
        add("falling", falling, torch.ones(1, dtype=torch.float64), 1 + damping, tight)
    return found
