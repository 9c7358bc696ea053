"""Where Proposition 3.3 and Lemma C.1 fail as printed, on small functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from studies.convergence.outcome import Check, bound_check, equality_check
from studies.functions.level_set_examples import flat_axis, half_square, long_way, quartic_well
from studies.geometry.derivatives import derivatives
from studies.geometry.level_sets import damped_newton_step, steepest_point
from studies.geometry.newton_bounds import Constants, printed_newton_bound, sharper_newton_bound


def counterexamples(generator: torch.Generator) -> tuple[list[Check], dict[str, Any]]:
    """Make the counterexamples, whose numbers can be checked by hand."""
    zero = torch.zeros(2, dtype=torch.float64)
    start = torch.tensor([1.5**0.5, 0.0], dtype=torch.float64)
    well = steepest_point(quartic_well, zero, float(quartic_well(start)), generator)
    at_start = float(torch.linalg.eigvalsh(derivatives(quartic_well, start).hessian)[-1])

    near = torch.tensor([0.2**0.5, 0.0], dtype=torch.float64)
    far = steepest_point(long_way, zero, float(long_way(near)), generator)

    flat = steepest_point(flat_axis, zero, 1.0, generator)  # ||g||^2 = 20 (1 - y^4) + 16 y^6
    at = derivatives(flat_axis, torch.tensor([0.2**0.5, 0.0], dtype=torch.float64))
    least = float(torch.linalg.eigvalsh(at.hessian)[0])
    pseudo = 10 * torch.linalg.pinv(at.hessian, rtol=1e-12) @ at.gradient

    one = torch.ones(1, dtype=torch.float64)
    line = steepest_point(half_square, 0 * one, 0.5, generator)
    after = abs(float(damped_newton_step(half_square, line.point, 0.5)))
    unit = Constants(1.0, 1.0, 0.0)
    checks = [
        bound_check(
            "Prop. 3.3 as printed: λ0 ≤ λmax(H(w0)), on x²/2 + y²/2 + y⁴/4",
            well.multiplier,
            at_start,
            expected=False,
        ),
        bound_check(
            "as the comparison with gradient descent is read: ‖w′ − w*‖ ≤ ‖w0 − w*‖, on "
            "x²/2 + .05y² + y⁸",
            float(far.point.norm()),
            float(near.norm()),
            expected=False,
        ),
        bound_check(
            "Prop. 3.3's rate as printed, on x²/2 from 1 with γ = ½/λ0",
            after,
            printed_newton_bound(1.0, 0.5, unit),
            expected=False,
        ),
        bound_check("the same, corrected", after, sharper_newton_bound(1.0, 0.5, unit)),
        equality_check(
            "the steepest points of 5x² + y⁴ = 1 are (±1/√5, 0)",
            flat.gradient_norm,
            float(at.gradient.norm()),
        ),
        Check(
            "Prop. 3.3 as printed: strict convexity makes H(w′) invertible, on 5x² + y⁴",
            False,
            least > 1e-12 * float(at.hessian.norm()),
            least,
        ),
        equality_check(
            "eq. 11 there with the pseudo-inverse: g = λ0 H⁺ g, λ0 = 10", pseudo, at.gradient
        ),
    ]
    facts = {
        "quartic_well": {**_found(well.point), "lambda_0": well.multiplier, "at_w0": at_start},
        "long_way": {**_found(far.point), "at_w0": float(near.norm())},
        "flat_axis": {**_found(flat.point), "least_eigenvalue": least},
        "half_square": {"after": after},
    }
    return checks, facts


def _found(point: Tensor) -> dict[str, Any]:
    return {"steepest": point.tolist(), "distance": float(point.norm())}
