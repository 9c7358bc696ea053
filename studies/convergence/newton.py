"""Teleportation and Newton's method: Proposition 3.3 and Lemma C.1 (eqs. 10, 11, 61-64)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from metaopt.evaluation.figure import usual_style
from studies.convergence.newton_counterexamples import counterexamples
from studies.convergence.newton_runs import (
    Lemma,
    Run,
    Teleported,
    descend,
    lemma_steps,
    teleported_steps,
)
from studies.convergence.outcome import (
    Check,
    Outcome,
    bound_check,
    equality_check,
    order_check,
    png,
)
from studies.functions.skewed import random_skewed
from studies.geometry.level_sets import order_of_convergence
from studies.geometry.newton_bounds import (
    bound_before_teleport,
    newton_bound,
    printed_newton_bound,
    sharper_newton_bound,
)

METHODS = {
    "anew": "teleport and gradient step, γ = 1/λ0 measured anew",
    "fixed": "teleport and gradient step, γ = 1/λ0 of the first step",
    "plain": "gradient descent, γ = 1/L",
}


@dataclass(frozen=True)
class Scale:
    """The sizes of the study."""

    sizes: tuple[int, ...]  # n of the functions of single steps
    starts: int  # of each
    runs: int  # from different points, of the orders
    lemma: int  # steps of Newton's method without a teleport


QUICK = Scale(sizes=(2, 3), starts=2, runs=2, lemma=60)
FULL = Scale(sizes=(2, 3, 4, 5, 6), starts=6, runs=6, lemma=600)


def study(quick: bool) -> Outcome:
    """Single steps, orders of convergence, the lemma's bounds, and the counterexamples."""
    scale = QUICK if quick else FULL
    generator = torch.Generator().manual_seed(0)
    steps = teleported_steps(scale.sizes, scale.starts, generator)
    function = random_skewed(3, 4.0, generator)
    runs = {name: descend(name, function, scale.runs, generator) for name in METHODS}
    lemma = lemma_steps(scale.lemma, generator)
    examples, example_facts = counterexamples(generator)
    checks = [*_steps(steps), *_orders(runs), *_bounds(lemma, steps), *examples]
    facts: dict[str, Any] = {
        "scale": asdict(scale),
        "constants": "mu, L and G of each function are bounds from the extremes of phi'' and "
        "phi''' (studies/functions/skewed.py); w' solves H g = lambda_0 g and L = level to the "
        "residual given; lambda_0 = g^T H g / ||g||^2",
        "steps_where_lambda_0_exceeds_lambda_max(H(w0))": sum(
            step.multiplier > step.largest_at_start for step in steps
        ),
        "steps": [step.facts() for step in steps],
        "orders": {name: run.facts() for name, run in runs.items()},
        "lemma": {name: values.facts() for name, values in lemma.items()},
        "examples": example_facts,
    }
    return Outcome("newton", checks, facts, _picture(runs, lemma))


def _steps(steps: list[Teleported]) -> list[Check]:
    """Eq. 11, and what Prop. 3.3 says of lambda_0."""
    angles = [_angle(s.gradient_step, s.newton_step) for s in steps]
    away = [_angle(s.gradient_at_start, s.newton_step_at_start) for s in steps]
    ours = [float(np.linalg.norm(s.gradient_step)) for s in steps]
    theirs = [float(np.linalg.norm(s.newton_step)) for s in steps]
    multipliers = [step.multiplier for step in steps]
    return [
        bound_check(
            "eq. 11: after the teleport, the angle between the gradient step and Newton's is 0, "
            "to 1e-8 rad",
            angles,
            1e-8,
        ),
        equality_check("eq. 11: γ‖g‖ = γ λ0 ‖H⁻¹g‖ after the teleport", ours, theirs),
        bound_check(
            "control: the same angle at w0, without the teleport", away, 1e-8, expected=False
        ),
        bound_check(
            "Prop. 3.3 corrected: λ0 ≤ λmax(H(w′))", multipliers, [s.largest for s in steps]
        ),
        bound_check("λ0 > 0: μ ≤ λ0", [s.constants.mu for s in steps], multipliers),
        bound_check(
            "eq. 10: no other of the points tried on the level set is steeper than w′",
            [s.steepest_tried for s in steps],
            [s.steepest for s in steps],
        ),
        bound_check(
            "‖w′ − w*‖ ≤ √(L/μ) ‖w0 − w*‖",
            [s.distance for s in steps],
            [(s.constants.beta / s.constants.mu) ** 0.5 * s.distance_at_start for s in steps],
        ),
    ]


def _angle(a: np.ndarray, b: np.ndarray) -> float:
    """In radians, exact for small ones too."""
    return 2 * float(np.arcsin(0.5 * np.linalg.norm(a / np.linalg.norm(a) - b / np.linalg.norm(b))))


def _orders(runs: dict[str, Run]) -> list[Check]:
    """Rates of convergence, by fit, and the bound on gradient descent."""
    anew, fixed, plain = (runs[name] for name in METHODS)
    return [
        order_check(
            "Prop. 3.3: with γ = 1/λ0 measured anew, order 2 from ‖w′ − w*‖ to ‖w1 − w*‖",
            order_of_convergence(*anew.pairs()).order,
            2.0,
            0.1,
        ),
        order_check(
            "the same from ‖w0 − w*‖ to ‖w1 − w*‖",
            order_of_convergence(*anew.pairs(teleported=False)).order,
            2.0,
            0.1,
        ),
        bound_check(
            "corrected for ‖w0 − w*‖: ‖w1 − w*‖ ≤ G L/(2μ²) ‖w0 − w*‖²",
            anew.after,
            bound_before_teleport(anew.before, anew.constants),
        ),
        order_check(
            "with γ = 1/λ0 of the first step for all, order 1 from ‖w′ − w*‖ to ‖w1 − w*‖",
            order_of_convergence(*fixed.pairs()).order,
            1.0,
            0.05,
        ),
        order_check(
            "gradient descent without teleports: order 1",
            order_of_convergence(*plain.pairs()).order,
            1.0,
            0.05,
        ),
        bound_check(
            "gradient descent, γ = 1/L: ‖w1 − w*‖ ≤ (1 − μγ) ‖w0 − w*‖",
            plain.after,
            (1 - plain.constants.mu / plain.constants.beta) * np.asarray(plain.before),
        ),
    ]


def _bounds(lemma: dict[str, Lemma], steps: list[Teleported]) -> list[Check]:
    """Eq. 61 as printed, where it holds and where not, and its corrected forms."""
    of_steps = [(s.distance, s.damping, s.distance_after, s.constants) for s in steps]
    measured = [s[2] for s in of_steps]
    forms = {
        "G/(2μ) δ² + |1−λ| (L/μ) δ": newton_bound,
        "λ G/(2μ) δ² + |1−λ| δ": sharper_newton_bound,
    }
    checks = []
    for text, form in forms.items():
        checks += [
            bound_check(
                f"Prop. 3.3 corrected, λ = γ λ0: ‖w1 − w*‖ ≤ {text}",
                measured,
                [float(form(d, damping, c)) for d, damping, _, c in of_steps],
            ),
            bound_check(
                f"Lemma C.1 corrected: δ₊ ≤ {text}",
                np.concatenate([values.after for values in lemma.values()]),
                np.concatenate([values.bound(form) for values in lemma.values()]),
            ),
        ]
    for name, where, expected in (
        ("skewed", "where L ≥ 2μ and 0 ≤ λ ≤ 1", True),
        ("round", "where L < 2μ", False),
        ("falling", "where L = 10μ and λ > 1", False),
    ):
        values = lemma[name]
        checks.append(
            bound_check(
                f"Lemma C.1 as printed, {where}", values.after, values.bound(printed_newton_bound),
                expected,
            )
        )  # fmt: skip
    return checks


@usual_style()
def _picture(runs: dict[str, Run], lemma: dict[str, Lemma]) -> bytes:
    figure = Figure(figsize=(13, 4), layout="constrained")
    by_step, by_distance, by_damping = figure.subplots(1, 3)
    for colour, (name, run) in zip(("C0", "C2", "C3"), runs.items(), strict=True):
        series = run.distances[0][:30]
        by_step.semilogy(series, ".-", color=colour, label=METHODS[name])
        x, y = run.pairs()
        fitted = order_of_convergence(x, y)
        by_distance.loglog(x, y, ".", color=colour, label=f"order {fitted.order:.3f}")
        ends = np.array([min(x), max(x)])
        by_distance.loglog(ends, fitted.constant * ends**fitted.order, color=colour, linewidth=0.8)
    by_step.set(xlabel="gradient steps", ylabel="‖w − w*‖ after the step", ylim=(1e-17, None))
    by_distance.set(xlabel="‖w′ − w*‖ before the step", ylabel="‖w₁ − w*‖ after it")
    falling = lemma["falling"]
    order = np.argsort(falling.damping)
    damping = np.asarray(falling.damping)[order]
    by_damping.plot(damping, np.asarray(falling.after)[order], "k.", label="measured")
    for label, form, style in (
        ("as printed", printed_newton_bound, "C3--"),
        ("corrected", newton_bound, "C0"),
        ("sharper", sharper_newton_bound, "C2"),
    ):
        by_damping.plot(damping, falling.bound(form)[order], style, label=label)
    by_damping.set(xlabel="damping λ", ylabel="δ₊ from δ = 1, with L = 10 μ (Lemma C.1)")
    for axes in (by_step, by_distance, by_damping):
        axes.minorticks_off()
        axes.legend(fontsize=7)
    return png(figure)
