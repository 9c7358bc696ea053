"""Counterexamples to inferences of section 3.3, on functions that can be checked by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from studies.convergence.outcome import (
    Check,
    bound_check,
    equality_check,
    order_check,
)
from studies.functions.level_set_examples import cubic_drift, exponential_drift
from studies.functions.quadratic import Quadratic
from studies.geometry.fields import (
    along,
    antisymmetric_basis,
    bracket,
    reverse_gradient,
    squared_gradient,
    turned_gradient,
)
from studies.geometry.level_sets import order_of_convergence
from studies.geometry.optimal_flows import (
    bracket_rate,
    equation_12,
    gradient_flow,
    loss_bracket,
)

Function = Callable[[Tensor], Tensor]
TURN = antisymmetric_basis(2)[0]
"""The only direction of antisymmetric matrices of two rows."""


def drift() -> tuple[list[Check], dict[str, Any]]:
    """Props 3.6 and 3.7 on functions that meet their assumption and not their conclusion."""
    checks: list[Check] = []
    facts: dict[str, Any] = {}
    start = torch.tensor([0.2, 0.0], dtype=torch.float64)
    places = [torch.tensor([x, 0.0], dtype=torch.float64) for x in (-0.4, 0.0, 0.2, 0.45)]
    examples: dict[str, Function] = {"y + xy³": cubic_drift, "y + eˣy³": exponential_drift}
    for name, function in examples.items():
        value, rate = loss_bracket(function, TURN), bracket_rate(function, TURN)
        flow = gradient_flow(function, start, [0.0, 0.025, 0.05, 0.075, 0.1])
        values = [float(value(w)) for w in flow.points]
        checks += [
            bound_check(
                f"Props 3.6, 3.7, assumption on {name}: at the optimal points, y = 0, "
                "[A, R]L = R[A, R]L = eq. 12 = 0",
                [
                    abs(float(zero))
                    for w in places
                    for zero in (value(w), rate(w), equation_12(function, w, TURN))
                ],
                0.0,
            ),
            bound_check(
                f"Props 3.6, 3.7 as printed on {name}: the flow from (.2, 0) stays optimal, "
                "|[A, R]L| ≤ 1e-8",
                np.abs(values),
                1e-8,
                expected=False,
            ),
        ]
        facts[name] = {"times": flow.times.tolist(), "[A,R]L": values}
    checks += _only_there()
    return checks, facts


def _only_there() -> list[Check]:
    """On y + e^x y^3, all of the plane: no other optimal points, and no bounded c_B."""
    function = exponential_drift
    generator = torch.Generator().manual_seed(2)
    values, stated = [], []
    for w in torch.randn(6, 2, generator=generator, dtype=torch.float64):
        a, y = w[0].exp(), w[1]
        values.append(float(along(turned_gradient(function, TURN), squared_gradient(function))(w)))
        sign = 1 if TURN[1, 0] > 0 else -1
        factor = 1 + 4 * a * y**2 + 3 * a**2 * y**4 + a * y**4 / 3
        stated.append(-6 * sign * float(a * y**2 * factor))
    heights = np.geomspace(1e-4, 1e-2, 4)
    ratios = []
    for y in heights:
        w = torch.tensor([0.2, -y], dtype=torch.float64)
        rate = bracket_rate(function, TURN)(w) / loss_bracket(function, TURN)(w)
        ratios.append(abs(float(rate)))
    return [
        equality_check("A‖g‖² on y + eˣy³ in closed form: 0 on y = 0 only", values, stated),
        order_check(
            "there R[A, R]L / [A, R]L grows as 1/|y|, so that no bounded c_B exists: power −1",
            order_of_convergence(heights, ratios).order,
            -1.0,
            0.05,
        ),
    ]


def silent_symmetry() -> tuple[list[Check], dict[str, Any]]:
    """A symmetry that leaves ||g||, with [A, R]L = 0 everywhere, and changes the flow all the same.

    L = (x^2 + 2 y^2 + 3 z^2) / 2 and A = grad L x grad ||g||^2, which keeps both. In X = x^2,
    Y = y^2, Z = z^2 it moves along (6, -6, 2), and d^2L/dt^2 = 2 (X + 8 Y + 27 Z) along a gradient
    flow changes.
    """
    diagonal = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    function = Quadratic(torch.diag(diagonal), torch.zeros(3, dtype=torch.float64))

    def field(w: Tensor) -> Tensor:
        crossed: Tensor = torch.linalg.cross(diagonal * w, 2 * diagonal**2 * w)
        return crossed

    start = np.ones(3)
    orbit = solve_ivp(
        lambda _, w: field(torch.from_numpy(w)).numpy(), (0, 0.03), start, "DOP853", rtol=1e-12
    )
    ends = torch.from_numpy(np.stack([start, orbit.y[:, -1]]))
    with_loss = along(bracket(field, reverse_gradient(function)), function)
    times = np.linspace(0, 1, 5)
    losses = np.array([gradient_flow(function, w, times).losses for w in ends])
    size = float(field(ends[0]).norm() * (2 * diagonal**2).norm())
    checks = [
        bound_check(
            "on (x² + 2y² + 3z²)/2 the symmetry A = ∂L × ∂‖g‖² has [A, R]L = 0, to 1e-12",
            [abs(float(with_loss(w))) / size for w in ends],
            1e-12,
        ),
        equality_check(
            "section 3.3 as printed: teleportation changes the rate of convergence only if "
            "[A, R]L ≠ 0; there, two points of one orbit have equal losses at equal times",
            losses[1],
            losses[0],
            expected=False,
        ),
        equality_check(
            "in its place: they have equal losses and equal dL/dt at t = 0",
            [float(function(ends[1])), float(squared_gradient(function)(ends[1]))],
            [float(function(ends[0])), float(squared_gradient(function)(ends[0]))],
        ),
    ]
    facts = {"times": times.tolist(), "points": ends.tolist(), "losses": losses.tolist()}
    return checks, facts
