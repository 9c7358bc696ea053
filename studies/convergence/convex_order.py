"""Proposition A.2: for strictly convex L, F(x) = max ||grad L||^2 on {L = x} rises with x.

Measured on functions with closed level sets, with what the proof says (eq. 40), and how the
statement fails where L is not strictly convex or no maximum is attained.
"""

from __future__ import annotations

import math

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import grad, hessian, vmap

from metaopt.evaluation.figure import usual_style
from studies.convergence.convex_order_failures import (
    ORIGIN,
    STRICT,
    Climb,
    climb,
    failing_checks,
    open_checks,
    open_steepness,
    pairs_check,
    rise_check,
)
from studies.convergence.outcome import (
    Check,
    Outcome,
    bound_check,
    equality_check,
    png,
)
from studies.functions.convexity import (
    STRICTLY_CONVEX,
    PlanarFunction,
    bent_line,
    quartic_valley,
)
from studies.functions.quadratic import booth, random_quadratic
from studies.geometry.fields import squared_gradient
from studies.geometry.level_curves import LevelCurves
from studies.geometry.rotations import quadratic_orbits

DIFFERENCE = 1e-4  # relative, in the level, of central differences


def convex_checks(name: str, function: PlanarFunction, levels: Tensor) -> tuple[Climb, list[Check]]:
    """The proposition and the derivative of F, for one function."""
    seen = climb(function, levels)
    generator = torch.Generator().manual_seed(5)
    points = 2 * torch.randn(500, 2, generator=generator, dtype=torch.float64)
    near = torch.stack([levels * (1 - DIFFERENCE), levels * (1 + DIFFERENCE)])
    low, high = LevelCurves(function, ORIGIN).largest(near.flatten()).value.reshape(2, -1)
    slope, bent, _ = at_steepest(function, seen.points)
    return seen, [
        rise_check(f"F rises with the level: {name}", seen.largest),
        pairs_check(f"Prop. A.2 on {name}", seen, function, torch.cat([points, seen.points])),
        equality_check(
            f"F' = 2 g^T H g / ||g||^2: {name} (to 1e-6: central differences)",
            ((high - low) / (near[1] - near[0])).numpy(),
            (2 * bent / slope.square().sum(-1)).numpy(),
            1e-6,
        ),
    ]


def at_steepest(function: PlanarFunction, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """g ``(m, 2)``, g^T H g ``(m,)`` and g . grad ||g||^2 ``(m,)``."""
    slope = vmap(grad(function))(points)
    bent = torch.einsum("mi,mij,mj->m", slope, vmap(hessian(function))(points), slope)
    pulled = (slope * vmap(grad(squared_gradient(function)))(points)).sum(-1)
    return slope, bent, pulled


def quadratic_checks(levels: Tensor) -> list[Check]:
    """Closed forms: F = 2 beta (x - L*), in the plane by search, in five dimensions by rotation."""
    plane = booth()

    def batched(w: Tensor) -> Tensor:
        shifted = w - plane.minimizer
        return 0.5 * ((shifted @ plane.matrix) * shifted).sum(-1)

    seen = climb(batched, levels, plane.minimizer)
    generator = torch.Generator().manual_seed(6)
    five = random_quadratic(5, 30.0, generator)
    orbits = quadratic_orbits(five)
    w = torch.randn(500, 5, generator=generator, dtype=torch.float64)
    square = (w @ five.matrix).square().sum(-1)
    value = 0.5 * ((w @ five.matrix) * w).sum(-1)
    turned = orbits.move(w, torch.linalg.qr(torch.randn(5, 5, generator=generator).double())[0])
    of_turned = (turned @ five.matrix).square().sum(-1)
    return [
        equality_check(
            "F = 2 beta (x - L*) for a quadratic",
            seen.largest,
            plane.largest_squared_gradient(levels).numpy(),
        ),
        rise_check("F rises with the level: quadratic", seen.largest),
        bound_check(
            "||grad L(g.w)||^2 <= F(L(w)) in five dimensions", of_turned, 2 * five.beta * value
        ),
        bound_check(
            "Prop. A.2 in five dimensions: F^-1(||grad L(w_2)||^2) <= L(w_2)",
            square / (2 * five.beta),
            value,
        ),
    ]


def proof_checks(seen: Climb) -> list[Check]:
    """Eq. 40, and what it concludes from.

    On x^2/2 + cos x - 1 with the group x -> -x, at 2 pi, g^T H g is 0 and F rises all the same.

    Args:
        seen: of the quartic valley.
    """
    _, bent, pulled = at_steepest(quartic_valley, seen.points)
    x = torch.linspace(2 * math.pi - 0.5, 2 * math.pi + 0.5, 41, dtype=torch.float64)
    squares = vmap(grad(bent_line))(x).square().numpy()
    curvature = float(hessian(bent_line)(torch.tensor(2 * math.pi, dtype=torch.float64)))
    return [
        equality_check(
            "eq. 40: g . grad ||g||^2 = g^T H g, as printed", pulled, bent, expected=False
        ),
        equality_check("g . grad ||g||^2 = 2 g^T H g", pulled, 2 * bent),
        Check(
            "the proof: g^T H g > 0 at the steepest point of strictly convex L, as printed",
            False,
            curvature > STRICT,
            curvature,
        ),
        rise_check("F rises with the level: x^2/2 + cos x - 1, around 2 pi", squares),
    ]


def study(quick: bool) -> Outcome:
    """Proposition A.2, eq. 40, and their limits."""
    levels = torch.logspace(-2, 1, 12 if quick else 40, dtype=torch.float64)
    seen: dict[str, Climb] = {}
    checks = quadratic_checks(levels)
    for name, function in STRICTLY_CONVEX.items():
        seen[name], found = convex_checks(name, function, levels)
        checks += found
    failing, found = failing_checks()
    checks += [*proof_checks(seen["quartic-valley"]), *found, *open_checks()]
    facts = {
        "quick": quick,
        "largest_squared_gradient": {
            name: {"levels": c.levels.tolist(), "largest": c.largest.tolist()}
            for name, c in {**seen, **failing}.items()
        },
        "how": "by a grid of angles at the minimiser, scipy's bracketed root along each ray and "
        "its bracketed minimiser of -||grad L||^2; the group turns by an angle on each level set",
    }
    return Outcome("convex-order", checks, facts, picture(seen, failing))


@usual_style()
def picture(seen: dict[str, Climb], failing: dict[str, Climb]) -> bytes:
    """F over the level: rising, not rising; and along level sets without a steepest point."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    rising, falling, along = figure.subplots(1, 3)
    for axes, climbs in ((rising, seen), (falling, failing)):
        for name, found in climbs.items():
            axes.plot(found.levels, found.largest, "o-", ms=3, label=name)
        axes.set(xlabel="level x", ylabel="max ‖∇L‖² on {L = x}")
    rising.set(xscale="log", yscale="log")
    rising.set_title("strictly convex", fontsize=10)
    falling.set_title("not convex (well), not strictly (huber)", fontsize=10)
    places = torch.linspace(-6, 6, 300, dtype=torch.float64)
    for name, level in (("exponentials", 0.9), ("narrowing-cone", 0.9), ("narrowing-cone", 0.6)):
        along.plot(places, open_steepness(name, level, places), label=f"{name}, level {level}")
    along.set(xlabel="t, along the level set", ylabel="‖∇L‖²")
    along.set_title("strictly convex, no minimiser: no maximum", fontsize=10)
    for axes, place in ((rising, "upper left"), (falling, "center right"), (along, "lower left")):
        axes.grid(True, alpha=0.3)
        axes.legend(fontsize=8, loc=place)
    return png(figure)
