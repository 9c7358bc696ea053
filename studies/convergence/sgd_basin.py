"""Theorem 3.1: with a teleport before each step, SGD reaches a basin whose whole orbit is flat.

Measured on problems with known constants, beside plain SGD; what the theorem does not cover (an
orbit without a maximum) and what the text after it claims too much of (L after T steps).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure

from metaopt.evaluation.figure import usual_style
from studies.convergence.outcome import (
    Check,
    Outcome,
    bound_check,
    equality_check,
    png,
)
from studies.convergence.sgd_counterexamples import (
    network_check,
    network_steepness,
    one_step_check,
    quartic_beta,
    quartic_losses,
)
from studies.convergence.stochastic import (
    Array,
    Run,
    StochasticProblem,
    cloud,
    sgd,
)
from studies.convergence.stochastic_problems import (
    axis_samples,
    bowl,
    many_directions,
    stationary,
)
from studies.geometry.bounds import BasinBounds

CHANCE = 5.0  # standard errors, for the largest deviation of some hundred means


@dataclass(frozen=True)
class Scale:
    """How much is run: values of T, and seeds; fewer where the maximum has no closed form."""

    steps: tuple[int, ...] = (2, 5, 17, 65, 257)
    seeds: int = 1000
    searched_steps: tuple[int, ...] = (2, 5, 17, 65)
    searched_seeds: int = 200


QUICK = Scale((2, 5, 17), 200, (2, 5, 17), 50)


class Measured(NamedTuple):
    """One problem at one T, with both methods."""

    problem: StochasticProblem
    bounds: BasinBounds
    teleported: Run
    plain: Run
    largest: Array  # E max_g ||grad L(g.w_t)||^2, t < T: exact, or what chance does not exceed
    largest_plain: Array


def problems(steps: int, searched: bool) -> list[StochasticProblem]:
    """Those of the study, for one T; the last one's orbit is searched numerically."""
    found = [
        stationary(steps, (1.0, 3.0)),
        many_directions(torch.Generator().manual_seed(1)),
        axis_samples(),
    ]
    return [*found, bowl()] if searched else found


def measure(problem: StochasticProblem, steps: int, seeds: int) -> Measured:
    """Teleported and plain SGD with the same draws."""
    bounds = problem.bounds(steps)
    teleported, plain = (
        sgd(problem, steps, seeds, torch.Generator().manual_seed(steps), teleport)
        for teleport in (True, False)
    )
    largest, largest_plain = teleported.largest.upper, plain.largest.upper
    if problem.expected is not None:
        largest, largest_plain = (
            problem.expected(bounds.learning_rate, steps, teleport).largest[:-1]
            for teleport in (True, False)
        )
    return Measured(problem, bounds, teleported, plain, largest, largest_plain)


def basin_checks(rows: list[Measured]) -> list[Check]:
    """Eqs. 7 and 34 for one problem, over T."""
    name = rows[0].problem.name
    best = [row.largest.min() for row in rows]
    means = [np.average(row.largest, weights=row.bounds.weights) for row in rows]
    plain = [row.plain.gradient.upper.min() for row in rows]
    printed = [row.bounds.gradient for row in rows]
    sharper = [row.bounds.mean_gradient for row in rows]
    return [
        bound_check(f"eq. 7 on {name}: min_t E max_g ||grad L||^2", best, printed),
        bound_check(f"eq. 34 on {name}: the mean over t, with c_T for 2", means, sharper),
        bound_check(f"eq. 7 for plain SGD on {name}, of ||grad L(w_t)||^2", plain, printed),
    ]


def lemma_checks(found: list[StochasticProblem]) -> list[Check]:
    """Lemma A.1 and what smoothness says of an orbit, at points around the minimum."""
    left, right, orbit, most = [], [], [], []
    for problem in found:
        w = cloud(problem, torch.Generator().manual_seed(2))
        excess = problem.loss(w) - problem.lowest
        left.append(problem.samples(w).square().sum(-1).mean(-1))
        right.append(2 * problem.beta * (excess + problem.sigma2))
        orbit.append(problem.gradient(problem.steepest(w)).square().sum(-1))
        most.append(2 * problem.beta * excess)
    parts = [torch.cat(part).numpy() for part in (left, right, orbit, most)]
    return [
        bound_check("Lemma A.1, eq. 20", parts[0], parts[1]),
        bound_check("max_g ||grad L(g.w)||^2 <= 2 beta (L - L*)", parts[2], parts[3]),
    ]


def sharpness_check(rows: list[Measured]) -> Check:
    """How close eq. 7 comes on the problem that starts where noise and contraction balance."""
    steps = np.array([row.bounds.steps for row in rows])
    return equality_check(
        "eq. 7 is sharp: 1 + 1 / (2 sqrt(T - 1)) times what is reached on stationary",
        [row.bounds.gradient / row.largest.min() for row in rows],
        1 + 0.5 / np.sqrt(steps - 1),
    )


def chance_check(rows: list[Measured]) -> Check:
    """Means over seeds against closed forms of the expectation."""
    worst = [0.0]
    for row in rows:
        assert row.problem.expected is not None
        for run, teleport in ((row.teleported, True), (row.plain, False)):
            args = row.bounds.learning_rate, row.bounds.steps, teleport
            exact = row.problem.expected(*args).excess
            slack = CHANCE * run.excess.error + 1e-10 * exact
            worst.append(float((np.abs(run.excess.mean - exact) / slack).max()))
    return bound_check("means over seeds are the expectations, within chance", worst, 1.0)


def plain_orbit_checks(rows: list[Measured]) -> list[Check]:
    """What plain SGD lacks, and L after T steps, where both are exact."""
    late = [row for row in rows if row.bounds.steps > 2]
    largest = [row.largest_plain.min() for row in late]
    losses = []
    for row in rows:
        assert row.problem.expected is not None
        rate, steps = row.bounds.learning_rate, row.bounds.steps
        losses.append([row.problem.expected(rate, steps, on).excess[-1] for on in (True, False)])
    return [
        bound_check(
            "eq. 7 without teleports, of max_g ||grad L(g.w_t)||^2",
            largest,
            [row.bounds.gradient for row in late],
            expected=False,
        ),
        bound_check(
            "E L(w_T) is no larger with teleports, for a quadratic with one Hessian",
            *np.transpose(losses),
        ),
    ]


def study(quick: bool) -> Outcome:
    """Theorem 3.1, eq. 7, Fig. 1 and the text after the theorem."""
    scale = QUICK if quick else Scale()
    by_name: dict[str, list[Measured]] = {}
    for steps in scale.steps:
        for problem in problems(steps, steps in scale.searched_steps):
            seeds = scale.searched_seeds if problem.mu is None else scale.seeds
            by_name.setdefault(problem.name, []).append(measure(problem, steps, seeds))
    exact = by_name["shared-hessian"]
    beta = quartic_beta()
    with_, without = (quartic_losses(5, on, beta) for on in (True, False))
    many = np.arange(2.0, 1001.0)  # T; x = 1 / (T - 1), (1 + x) / x = T
    one = BasinBounds(2.0, 0.0, 1.0, 17)
    checks = [check for rows in by_name.values() for check in basin_checks(rows)]
    checks += [
        *lemma_checks([rows[-1].problem for rows in by_name.values()]),
        sharpness_check(by_name["stationary"]),
        chance_check([*by_name["stationary"], *exact]),
        *plain_orbit_checks(exact),
        network_check(),
        bound_check(
            "L after T steps is smaller with teleports, as printed", with_[-1], without[-1], False
        ),
        one_step_check(beta),
        equality_check(
            "eq. 36: the sum of alpha_t eta",
            one.weights.sum() * one.learning_rate,
            1 / (one.gap_factor * one.beta**2 * one.learning_rate),
        ),
        bound_check("the proof's 2 (1 + x) / x <= T, as printed", 2 * many, many, False),
        bound_check("log 2 (1 + x) / x <= T", math.log(2) * many, many),
        bound_check("(1 + x)^-T = (1 - 1/T)^T <= 1/e", (1 - 1 / many) ** many, math.exp(-1)),
    ]
    facts = {
        "quick": quick,
        "problems": {name: _facts(rows) for name, rows in by_name.items()},
        "quartic": {
            "beta": beta,
            "beta_how": "the largest second derivative on {L <= 1/2}, which all iterates stay in",
            "steps": 5,
            "losses_with_teleports": with_.tolist(),
            "losses_without": without.tolist(),
        },
        "network": "1/2 (u v - 1)^2 from (2, 1): ||grad L||^2 grows as s^2 on (s u, v / s), beyond "
        "2 beta L for every beta, so no beta exists and no maximum",
    }
    return Outcome("sgd-basin", checks, facts, picture(by_name, with_, without))


def _facts(rows: list[Measured]) -> dict[str, Any]:
    problem = rows[-1].problem
    return {
        "beta": problem.beta,
        "sigma2": problem.sigma2,
        "how": dict(problem.how),
        "largest": "exact" if problem.expected is not None else "mean over seeds + 4 std. errors",
        "over_T": [
            {
                "T": row.bounds.steps,
                "gap": row.bounds.gap,
                "min_largest_with_teleports": float(row.largest.min()),
                "min_largest_without": float(row.largest_plain.min()),
                "min_gradient_without": float(row.plain.gradient.upper.min()),
                "eq_7": row.bounds.gradient,
                "eq_34": row.bounds.mean_gradient,
                "final_excess_with_teleports": float(row.teleported.excess.mean[-1]),
                "final_excess_without": float(row.plain.excess.mean[-1]),
            }
            for row in rows
        ],
    }


@usual_style()
def picture(by_name: dict[str, list[Measured]], with_: Array, without: Array) -> bytes:
    """Measured over eq. 7 against T; the basin; the orbit without a maximum; the losses."""
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    (ratio, basin), (orbit, losses) = figure.subplots(2, 2)
    for i, (name, rows) in enumerate(by_name.items()):
        steps = [row.bounds.steps for row in rows]
        shares = [row.largest.min() / row.bounds.gradient for row in rows]
        ratio.loglog(steps, shares, "o-", color=f"C{i}", label=name)
        shares = [row.largest_plain.min() / row.bounds.gradient for row in rows]
        ratio.loglog(steps, shares, "x--", color=f"C{i}")
    ratio.axhline(1, color="black", lw=1)
    ratio.set(xlabel="T", ylabel="min over t of E max ‖∇L‖² / eq. 7")
    ratio.set_title("with teleports (o), without (x)", fontsize=10)
    row = by_name["shared-hessian"][-1]
    for run, label in ((row.teleported, "with teleports"), (row.plain, "without")):
        basin.semilogy(run.largest.mean, label=label)
    basin.axhline(row.bounds.gradient, color="black", lw=1, ls=":", label="eq. 7")
    basin.set(xlabel="t", ylabel="E max over the orbit of ‖∇L(g·w_t)‖²")
    basin.set_title("the basin (shared-hessian)", fontsize=10)
    places = torch.linspace(-4, 4, 200, dtype=torch.float64)
    orbit.semilogy(places.exp(), network_steepness(2.0, 1.0, places), label="½(uv − 1)², GL")
    orbit.set(xscale="log", xlabel="s, at (s u, v / s)", ylabel="‖∇L‖²")
    orbit.set_title("an orbit without a maximum", fontsize=10)
    losses.semilogy(with_, "o-", label="with teleports")
    losses.semilogy(without, "x--", label="without")
    losses.set(xlabel="t", ylabel="L(w_t)")
    losses.set_title("x²/2 + y²/4 + .0508 y⁴ from (1, 0), T = 5", fontsize=10)
    for axes in (ratio, basin, orbit, losses):
        axes.grid(True, alpha=0.3)
        axes.legend(fontsize=8)
    return png(figure)
