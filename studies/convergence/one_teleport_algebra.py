"""Checks of the identities of section 3.3 and appendix D, and of the condition of Prop. D.3."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from studies.convergence.outcome import (
    Check,
    bound_check,
    equality_check,
)
from studies.functions.level_set_examples import (
    radial,
    ridge,
    tilted_quartic,
)
from studies.functions.quadratic import random_quadratic
from studies.functions.skewed import SkewedQuadratic, random_skewed
from studies.geometry.derivatives import slope
from studies.geometry.fields import (
    along,
    antisymmetric_basis,
    reverse_gradient,
    squared_gradient,
    turned_gradient,
)
from studies.geometry.level_sets import steepest_point
from studies.geometry.optimal_flows import (
    bracket_rate,
    bracket_rate_formula,
    companion,
    condition_d3,
    condition_in_section_3,
    equation_12,
    gradient_flow,
    loss_bracket,
    third_derivative,
)

Function = Callable[[Tensor], Tensor]
TURN = antisymmetric_basis(2)[0]
"""The only direction of antisymmetric matrices of two rows."""


def algebra(
    points: int, nodes: int, generator: torch.Generator
) -> tuple[list[Check], dict[str, Any]]:
    """Eqs. 65, 66 and 77, and Prop. D.3."""
    function = random_skewed(3, 4.0, generator)
    eq_66, facts = _along_a_flow(nodes)
    checks = [
        *_brackets(function, points, generator),
        *eq_66,
        *_at_optimal_points(function, generator),
        _linear_on_quadratics(points, generator),
        *_condition(function, generator),
    ]
    return checks, facts


def _brackets(function: SkewedQuadratic, points: int, generator: torch.Generator) -> list[Check]:
    """At random points, for every A of the basis."""
    squared, reverse = squared_gradient(function), reverse_gradient(function)
    rows: list[list[float]] = []
    for _ in range(points):
        w = torch.randn(3, generator=generator, dtype=torch.float64)
        for m in antisymmetric_basis(3):
            a = turned_gradient(function, m)
            ar, ra = along(a, along(reverse, function)), along(reverse, along(a, function))
            values = (
                loss_bracket(function, m)(w),
                ar(w) - ra(w),
                -along(a, squared)(w),
                bracket_rate(function, m)(w),
                bracket_rate_formula(function, w, m),
                2 * equation_12(function, w, m),
            )
            rows.append([float(value) for value in values])
    by_bracket, by_fields, by_square, rates, formula, eq_77 = np.array(rows).T
    return [
        equality_check("Prop. 3.5, eq. 65: [A, R]L = −A‖∂L/∂w‖²", by_bracket, by_square),
        equality_check("[A, R]L = A(RL) − R(AL)", by_bracket, by_fields),
        equality_check("R[A, R]L = 2 (Mg)ᵀ(T[g, g] + H²g) at any point", rates, formula),
        equality_check(
            "eq. 77 at points that are not optimal (where it is not claimed)",
            rates,
            eq_77,
            expected=False,
        ),
    ]


def _along_a_flow(nodes: int) -> tuple[list[Check], dict[str, Any]]:
    """Eq. 66, integrated by Gauss and Legendre along a flow from a steepest point."""
    function, zero = tilted_quartic(), torch.zeros(2, dtype=torch.float64)
    start = steepest_point(function, zero, 1.0, torch.Generator().manual_seed(1)).point
    end = 0.3
    x, weights = np.polynomial.legendre.leggauss(nodes)
    times = np.concatenate([0.5 * end * (x + 1), [end]])
    flow = gradient_flow(function, start, times)
    rates = np.array([float(bracket_rate_formula(function, w, TURN)) for w in flow.points])
    bracket = loss_bracket(function, TURN)
    change = float(bracket(flow.points[-1]) - bracket(start))
    integral = 0.5 * end * float(weights @ rates[:-1])
    checks = [
        equality_check(
            "eq. 66 with +R: [A, R]L changes along a flow by the integral of R[A, R]L",
            change,
            integral,
        ),
        equality_check("eq. 66 as printed, with −R", change, -integral, expected=False),
    ]
    facts = {
        "times": times.tolist(),
        "R[A,R]L": rates.tolist(),
        "2 eq. 12": [2 * float(equation_12(function, w, TURN)) for w in flow.points],
        "change_of_[A,R]L": change,
    }
    return checks, {"tilted quartic": facts}


def _at_optimal_points(function: SkewedQuadratic, generator: torch.Generator) -> list[Check]:
    rates, eq_77 = [], []
    for target, minimizer, level in (
        (function, function.minimizer, 1.0),
        (tilted_quartic(), torch.zeros(2, dtype=torch.float64), 1.0),
    ):
        w = steepest_point(target, minimizer, level, generator).point
        for m in antisymmetric_basis(len(w)):
            rates.append(float(bracket_rate(target, m)(w)))
            eq_77.append(2 * float(equation_12(target, w, m)))
    return [
        equality_check("eq. 77 at optimal points: R[A, R]L = 2 (Mg)ᵀT[g, g]", rates, eq_77),
        bound_check(
            "eq. 12 at all optimal points, for any L (no, says the paper): |(Mg)ᵀT[g, g]| ≤ 1e-8",
            np.abs(eq_77),
            1e-8,
            expected=False,
        ),
    ]


def _linear_on_quadratics(points: int, generator: torch.Generator) -> Check:
    """What makes one teleport enough there."""
    function = random_quadratic(4, 10.0, generator)
    rates, combined = [], []
    for _ in range(points):
        w = torch.randn(4, generator=generator, dtype=torch.float64)
        for m in antisymmetric_basis(4):
            factor, k = companion(function, w, m)
            rates.append(float(bracket_rate_formula(function, w, m)))
            combined.append(
                -float(factor * loss_bracket(function, m)(w) + loss_bracket(function, k)(w))
            )
    return equality_check(
        "sufficient, and met by quadratics: R[A, R]L = Σ c_B [B, R]L near the flow, here "
        "−λ [A, R]L − [Kg, R]L",
        rates,
        combined,
    )


def _condition(function: SkewedQuadratic, generator: torch.Generator) -> list[Check]:
    """Prop. D.3's condition and eq. 12 on four functions."""
    n = 3
    plane = torch.randn(2, generator=generator, dtype=torch.float64)
    space = torch.randn(n, generator=generator, dtype=torch.float64)
    quadratic = random_quadratic(n, 10.0, generator)

    def defects(target: Function, w: Tensor) -> tuple[float, float, float]:
        """Relative errors of D.3's condition, of section 3.3's form of it, and of eq. 12.

        Eq. 12 is contracted from T here, and measured by ‖T‖‖g‖³. ``equation_12`` takes T[g, g] as
        a difference of two terms of the size of H²g, whose rounding ‖T‖ says nothing about: for a
        quadratic, T is 0 and that rounding is all that is left.
        """
        third, g = third_derivative(target, w), slope(target, w)
        size = float(third.norm() * g.norm() ** 3)
        along_g = torch.einsum("kij,k,i->j", third, g, g)
        eq_12 = max(abs(float((m @ g) @ along_g)) for m in antisymmetric_basis(len(w)))
        scrambled = condition_in_section_3(third, g)
        return condition_d3(third, g), scrambled, eq_12 / size if size > 0 else eq_12

    met = [defects(quadratic, space), defects(ridge, plane)]
    round_, bent = defects(radial, space), defects(function, space)
    return [
        bound_check(
            "Prop. D.3's condition is met by quadratics and by functions of one linear "
            "combination, to 1e-12",
            [d[0] for d in met],
            1e-12,
        ),
        bound_check("Prop. D.3: eq. 12 then holds, to 1e-12", [d[2] for d in met], 1e-12),
        bound_check(
            "it is met by a function with bends along several directions (control)",
            bent[0],
            1e-12,
            expected=False,
        ),
        bound_check("eq. 12 on that function (control)", bent[2], 1e-12, expected=False),
        bound_check("eq. 12 on ‖w‖⁴/4, to 1e-12", round_[2], 1e-12),
        bound_check(
            "Prop. D.3's condition is necessary for eq. 12: ‖w‖⁴/4 meets it",
            round_[0],
            1e-12,
            expected=False,
        ),
        bound_check(
            "section 3.3's form of the condition is met where D.3's is, on log cosh(w₁ + 2w₂), as "
            "printed",
            met[1][1],
            1e-12,
            expected=False,
        ),
    ]
