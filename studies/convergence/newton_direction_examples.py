"""Small examples for appendix B, with numbers that can be checked by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from studies.convergence.outcome import Check, bound_check, equality_check
from studies.functions.level_set_examples import slope_and_half_square
from studies.geometry.derivatives import derivatives
from studies.geometry.newton_directions import (
    cosine,
    growth,
    kantorovich_cosine,
    newton_orthogonal,
    power_forms,
    steepest_orthogonal,
    widest_case,
)


def examples_by_hand() -> tuple[list[Check], dict[str, Any]]:
    """Those of the errata, eq. 53, and the widest angle."""
    h = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    g = torch.ones(3, dtype=torch.float64)
    v, u = newton_orthogonal(h, g), steepest_orthogonal(h, g)

    a = torch.diag(torch.tensor([1.0, -2.0], dtype=torch.float64))
    w = torch.tensor([1.0, 3.0], dtype=torch.float64)
    powers = power_forms(a, w, 1)
    square, product = float(powers[0] ** 2), float(powers[-1] * powers[1])
    not_convex = float(2 * (a @ w) @ newton_orthogonal(a, w))

    at = derivatives(slope_and_half_square, torch.tensor([1.0, 0.0], dtype=torch.float64))
    pinv = torch.linalg.pinv(at.hessian)
    singular = float(2 * at.product @ newton_orthogonal(at.hessian, at.gradient, pinv))
    inside = _least_squares()

    wide, tilt = widest_case(100.0, 1e-6)
    widest = float(cosine(newton_orthogonal(wide, tilt), steepest_orthogonal(wide, tilt)))
    checks = [
        equality_check(
            "Prop. B.3 as printed: on diag(1, 2, 3), g = (1, 1, 1), ‖g‖² grows along v⊥ at the "
            "largest rate",
            float(growth(h, g, v)),
            float(growth(h, g, u)),
            expected=False,
        ),
        bound_check(
            "eq. 53: Lemma B.1 for an indefinite A (fails, as the paper says)",
            square,
            product,
            expected=False,
        ),
        bound_check(
            "Prop. B.2 for that A (fails, as the paper says): 0 ≤ v⊥·∂‖g‖²",
            -not_convex,
            0.0,
            expected=False,
        ),
        bound_check(
            "Prop. B.2 'also for nonstrictly convex', as printed, with H⁺ on x²/2 + y: "
            "0 ≤ v⊥·∂‖g‖²",
            -singular,
            0.0,
            expected=False,
        ),
        bound_check(
            "the same with g in the range of a singular H (least squares): ‖g‖⁴ ≤ (gᵀHg)(gᵀH⁺g)",
            1.0,
            inside,
        ),
        equality_check(
            "no larger bound holds: cos on diag(1, 10, 100), g near its middle axis, is "
            "2√κ/(1 + κ), to 1e-4",
            widest,
            float(kantorovich_cosine(100.0)),
            tolerance=1e-4,
        ),
    ]
    facts = {
        "diag(1, 2, 3)": {
            "cosine": float(cosine(v, u)),
            "rate_along_v": float(growth(h, g, v)),
            "largest_rate": float(growth(h, g, u)),
        },
        "eq. 53": {"left": square, "right": product, "derivative": not_convex},
        "x^2/2 + y at (1, 0)": {"derivative": singular},
        "widest": widest,
    }
    return checks, facts


def _least_squares() -> Tensor:
    """(g^T H g)(g^T H^+ g) / ||g||^4 for H = J^T J and g = J^T r with fewer rows than columns."""
    generator = torch.Generator().manual_seed(1)
    j = torch.randn(100, 3, 6, generator=generator, dtype=torch.float64)
    r = torch.randn(100, 3, 1, generator=generator, dtype=torch.float64)
    h, g = j.mT @ j, (j.mT @ r)[..., 0]
    inverse = torch.linalg.pinv(h, rtol=1e-10)
    forms = [(g[..., None, :] @ m @ g[..., None])[..., 0, 0] for m in (h, inverse)]
    ratio: Tensor = forms[0] * forms[1] / g.square().sum(-1) ** 2
    return ratio
