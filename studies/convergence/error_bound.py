"""Theorem 3.2: under the PL inequality, distances to the minimum over the orbit, and the loss.

Eqs. 9 and 38 bound a distance by what eq. 7 bounds its square with; what follows is measured beside
them, as is eq. 39, from which they are derived.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure

from metaopt.evaluation.figure import usual_style
from studies.convergence.outcome import Check, Outcome, bound_check, png
from studies.convergence.stochastic import Array, StochasticProblem, cloud, sgd
from studies.convergence.stochastic_problems import (
    axis_samples,
    many_directions,
    ripple,
    ripple_constants,
    ripple_slope,
    rippled_ellipse,
    shared_hessian,
    stationary,
)
from studies.geometry.bounds import BasinBounds

STEPS = (2, 5, 17, 65, 257)
RIPPLE_BETA = 8.0  # of r^2 + 3 sin^2 r


class Measured(NamedTuple):
    """One problem at one T; expectations plus 4 standard errors, at t = 0, ..., T - 1."""

    problem: StochasticProblem
    bounds: BasinBounds
    distance: Array
    squared_distance: Array
    excess: Array


def problems(steps: int) -> list[StochasticProblem]:
    """Those of the study, for one T; each has mu and elliptic orbits."""
    many = many_directions(torch.Generator().manual_seed(1))
    return [stationary(steps), many, axis_samples(), rippled_ellipse()]


def measure(problem: StochasticProblem, steps: int, seeds: int) -> Measured:
    """SGD with teleports (eq. 5)."""
    run = sgd(problem, steps, seeds, torch.Generator().manual_seed(steps))
    assert run.distance is not None
    assert run.squared_distance is not None
    return Measured(
        problem,
        problem.bounds(steps),
        run.distance.upper,
        run.squared_distance.upper,
        run.excess.upper[:-1],
    )


def corrected_checks(rows: list[Measured]) -> list[Check]:
    """What follows from eq. 7, for one problem over T."""
    name = rows[0].problem.name
    bounds = [row.bounds for row in rows]
    return [
        bound_check(
            f"min_t E max_g dist^2 <= RHS(7) / mu^2 on {name}",
            [row.squared_distance.min() for row in rows],
            [b.squared_distance for b in bounds],
        ),
        bound_check(
            f"min_t E max_g dist <= sqrt(RHS(7)) / mu on {name}",
            [row.distance.min() for row in rows],
            [b.distance for b in bounds],
        ),
        bound_check(
            f"min_t E [L - L*] <= RHS(7) / (2 mu) on {name}",
            [row.excess.min() for row in rows],
            [b.excess for b in bounds],
        ),
    ]


def assumption_checks(found: list[StochasticProblem]) -> list[Check]:
    """Eqs. 8 and 39 around the minimum, and where the gradient is smallest on an orbit."""
    excess, pl, distance, error = [], [], [], []
    for problem in found:
        assert problem.mu is not None
        assert problem.orbits is not None
        w = cloud(problem, torch.Generator().manual_seed(2), 400)
        square = problem.gradient(w).square().sum(-1)
        excess.append(problem.loss(w) - problem.lowest)
        pl.append(square / (2 * problem.mu))
        distance.append((w - problem.orbits.center).norm(dim=-1))
        error.append(square.sqrt() / problem.mu)
    sides = [torch.cat(side).numpy() for side in (excess, pl, distance, error)]
    return [
        bound_check("eq. 8, the PL inequality, with each problem's mu", sides[0], sides[1]),
        bound_check("eq. 39 follows: mu dist <= ||grad L||", sides[2], sides[3]),
    ]


def printed_checks() -> list[Check]:
    """Eq. 9 on L = w^2/2, T = 5, from .01, the group w -> -w (no noise, beta = mu = 1); and late.

    On the stationary problem with T = 257 all distances are equal, so that these are exact too.
    """
    one = torch.eye(1, dtype=torch.float64)
    small = measure(shared_hessian("w^2/2", one, 0 * one, 0.01 * one[0]), 5, 2)
    late = measure(stationary(257), 257, 2)
    return [
        check
        for row, name in ((small, "w^2/2 from .01"), (late, "stationary, T = 257"))
        for check in (
            bound_check(
                f"eq. 9 on {name}, as printed",
                row.distance.min(),
                row.bounds.printed_distance,
                expected=False,
            ),
            bound_check(
                f"min_t E max_g dist <= sqrt(RHS(7)) / mu on {name}",
                row.distance.min(),
                row.bounds.distance,
            ),
        )
    ]


def fixed_minimizer_checks() -> list[Check]:
    """x^2/2 in the plane, the group shifts y: the minimisers are a line, max ||grad L|| = |x|.

    From (1, 0) with T = 5: the orbit of w_t goes on for ever, so that its distance from one
    minimiser has no bound, while that from the nearest one is |x|.
    """
    bounds = BasinBounds(beta=1.0, sigma2=0.0, gap=0.5, steps=5, mu=1.0)
    x = (1 - bounds.learning_rate) ** np.arange(5)
    shifts = np.array([0.0, 1.0, 1e3])
    to_one = np.hypot(x[:, None], shifts).max(axis=1)
    return [
        bound_check(
            "eq. 9 with sqrt(RHS(7)) / mu but one fixed w*, as printed",
            to_one.min(),
            bounds.distance,
            expected=False,
        ),
        bound_check("the same with the minimiser nearest to g.w", x.min(), bounds.distance),
    ]


def equivalence_checks() -> list[Check]:
    """Eq. 39's "equivalent" on r^2 + 3 sin^2 r: from the error bound with m back to PL."""
    _, m = ripple_constants()
    r = torch.linspace(1e-3, 20, 20001, dtype=torch.float64)
    q, square = ripple(r).numpy(), ripple_slope(r).square().numpy()
    return [
        bound_check("eq. 39 with m holds on r^2 + 3 sin^2 r", m**2 * r.numpy() ** 2, square),
        bound_check(
            "eq. 39 with m is equivalent to PL with the same m, as printed",
            q,
            square / (2 * m),
            expected=False,
        ),
        bound_check("eq. 39 with m implies PL with m^2 / beta", q, square * RIPPLE_BETA / m**2 / 2),
    ]


def study(quick: bool) -> Outcome:
    """Theorem 3.2, eqs. 8, 9, 38 and 39."""
    by_name: dict[str, list[Measured]] = {}
    for steps in STEPS[:3] if quick else STEPS:
        for problem in problems(steps):
            row = measure(problem, steps, 200 if quick else 1000)
            by_name.setdefault(problem.name, []).append(row)
    checks = [
        *(check for rows in by_name.values() for check in corrected_checks(rows)),
        *assumption_checks([rows[-1].problem for rows in by_name.values()]),
        *printed_checks(),
        *fixed_minimizer_checks(),
        *equivalence_checks(),
    ]
    pl, error = ripple_constants()
    facts = {
        "quick": quick,
        "problems": {name: _facts(rows) for name, rows in by_name.items()},
        "ripple": {"pl": pl, "error_bound": error, "beta": RIPPLE_BETA},
        "printed": "eq. 9 bounds a distance by RHS(7) / mu, whose units are those of a distance "
        "times a gradient; where it holds on the problems above, it is because of their scale",
    }
    return Outcome("error-bound", checks, facts, picture(by_name))


def _facts(rows: list[Measured]) -> dict[str, Any]:
    problem = rows[-1].problem
    return {
        "beta": problem.beta,
        "sigma2": problem.sigma2,
        "mu": problem.mu,
        "how": dict(problem.how),
        "over_T": [
            {
                "T": row.bounds.steps,
                "gap": row.bounds.gap,
                "min_distance": float(row.distance.min()),
                "min_squared_distance": float(row.squared_distance.min()),
                "min_excess": float(row.excess.min()),
                "distance_bound": row.bounds.distance,
                "squared_distance_bound": row.bounds.squared_distance,
                "excess_bound": row.bounds.excess,
                "eq_9_as_printed": row.bounds.printed_distance,
            }
            for row in rows
        ],
    }


@usual_style()
def picture(by_name: dict[str, list[Measured]]) -> bytes:
    """Measured over bound against T; eq. 9 against the size of the start; eq. 39 both ways."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    ratio, size, both = figure.subplots(1, 3)
    for i, (name, rows) in enumerate(by_name.items()):
        steps = [row.bounds.steps for row in rows]
        squares = [row.squared_distance.min() / row.bounds.squared_distance for row in rows]
        excess = [row.excess.min() / row.bounds.excess for row in rows]
        ratio.loglog(steps, squares, "o-", color=f"C{i}", label=name)
        ratio.loglog(steps, excess, "x--", color=f"C{i}")
    ratio.axhline(1, color="black", lw=1)
    ratio.set(xlabel="T", ylabel="measured / bound")
    ratio.set_title("max dist² (o) and L − L* (x), corrected bounds", fontsize=10)
    starts = np.logspace(-4, 1, 60)
    bounds = [BasinBounds(1.0, 0.0, w**2 / 2, 5, 1.0) for w in starts]
    size.loglog(starts, starts / 2**4, label="min max dist, measured")
    size.loglog(starts, [b.printed_distance for b in bounds], "--", label="eq. 9 as printed")
    size.loglog(starts, [b.distance for b in bounds], ":", label="√RHS(7) / μ")
    size.set(xlabel="w_0", ylabel="distance")
    size.set_title("L = w²/2, T = 5", fontsize=10)
    r = torch.linspace(0.05, 8, 400, dtype=torch.float64)
    slope, value = ripple_slope(r), ripple(r)
    both.plot(r, slope / r, label="‖∇L‖ / dist (eq. 39)")
    both.plot(r, slope.square() / (2 * value), "--", label="‖∇L‖² / 2 (L − L*) (eq. 8)")
    for constant, style in zip(ripple_constants(), ("--", "-"), strict=True):
        both.axhline(constant, color="grey", lw=0.8, ls=style)
    both.set(xlabel="r", ylabel="ratio; its minimum is the constant")
    both.set_title("r² + 3 sin² r: two constants", fontsize=10)
    for axes in (ratio, size, both):
        axes.grid(True, alpha=0.3)
        axes.legend(fontsize=8)
    return png(figure)
