"""Newton's direction orthogonal to the gradient: Lemma B.1, Props B.2 and B.3, Figure 7."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from metaopt.evaluation.figure import usual_style
from studies.convergence.newton_direction_examples import examples_by_hand
from studies.convergence.outcome import (
    Check,
    Outcome,
    bound_check,
    equality_check,
    png,
)
from studies.functions.quadratic import ellipse
from studies.functions.skewed import random_skewed
from studies.geometry.derivatives import derivatives
from studies.geometry.fields import gradient, squared_gradient
from studies.geometry.newton_directions import (
    cosine,
    growth,
    kantorovich_cosine,
    newton_orthogonal,
    orthogonal_part,
    power_forms,
    printed_steepest,
    random_positive_definite,
    steepest_orthogonal,
)

SIZES = (2, 3, 5, 10, 20, 50)
CONDITIONS = (10.0, 100.0, 1000.0)
QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)


@dataclass(frozen=True)
class Scale:
    """The sizes of the study."""

    draws: int  # of H and g, for each size and condition number
    points: int  # of a function that is no quadratic


QUICK = Scale(draws=60, points=2)
FULL = Scale(draws=1000, points=20)


@dataclass(frozen=True)
class Draws:
    """Draws of H with one condition number and one size, and g; entries ``(draws,)``."""

    cosine: Tensor  # between v_perp and P H g
    ratio: Tensor  # of the rates at which ||g||^2 grows along the two
    cauchy: Tensor  # (g^T H g)(g^T H^-1 g) / ||g||^4, eq. 51
    lemma: Tensor  # the right side of eq. 44 by its left, least over alpha and beta
    factor: Tensor  # cosine between g and eq. 58 as printed
    parallel: Tensor  # cosine between eq. 58 with a factor of 1 and the steepest direction


def study(quick: bool) -> Outcome:
    """Random H and g in 2 to 50 dimensions, and the examples."""
    scale = QUICK if quick else FULL
    generator = torch.Generator().manual_seed(0)
    table = {(n, c): _draw(n, c, scale.draws, generator) for n in SIZES for c in CONDITIONS}
    examples, example_facts = examples_by_hand()
    checks = [*_statements(table), _on_a_function(scale.points, generator), *examples]
    facts: dict[str, Any] = {
        "scale": asdict(scale),
        "draws": "H turned at random with eigenvalues 1, kappa and, between them, log-uniform "
        "ones; g normal. The ratio of the rates is the cosine itself",
        "quantiles": QUANTILES,
        "cosine": {
            f"n = {n}, kappa = {c:g}": _quantiles(draws.cosine) for (n, c), draws in table.items()
        },
        "ratio_of_rates": {
            f"n = {n}, kappa = {c:g}": _quantiles(draws.ratio) for (n, c), draws in table.items()
        },
        "least_possible_cosine": {f"{c:g}": float(kantorovich_cosine(c)) for c in CONDITIONS},
        "examples": example_facts,
    }
    return Outcome("newton-direction", checks, facts, _picture(table))


def _draw(n: int, condition: float, draws: int, generator: torch.Generator) -> Draws:
    h = random_positive_definite(n, condition, draws, generator)
    g = torch.randn(draws, n, generator=generator, dtype=torch.float64)
    v, u = newton_orthogonal(h, g), steepest_orthogonal(h, g)
    powers = power_forms(h, g, 2)
    lemma = [
        powers[a + b] * powers[a - b] / powers[a] ** 2
        for a in range(-2, 3)
        for b in range(-2, 3)
        if b != 0
    ]
    return Draws(
        cosine=cosine(v, u),
        ratio=growth(h, g, v) / (2 * u.norm(dim=-1)),
        cauchy=powers[1] * powers[-1] / powers[0] ** 2,
        lemma=torch.stack(lemma).amin(0),
        factor=cosine(printed_steepest(h, g), g),
        parallel=cosine(orthogonal_part(printed_steepest(h, g), g), u),
    )


def _statements(table: dict[tuple[int, float], Draws]) -> list[Check]:
    plane = torch.cat([draws.cosine for (n, _), draws in table.items() if n == 2])
    space = torch.cat([draws.cosine for (n, _), draws in table.items() if n > 2])
    conditions = torch.cat([torch.full_like(d.cosine, c) for (_, c), d in table.items()])
    every = {
        name: torch.cat([getattr(draws, name) for draws in table.values()])
        for name in ("cosine", "ratio", "cauchy", "lemma", "factor", "parallel")
    }
    one = torch.ones(1, dtype=torch.float64)
    return [
        bound_check(
            "Lemma B.1: (wᵀA^α w)² ≤ (wᵀA^(α+β) w)(wᵀA^(α−β) w), α and β from −2 to 2",
            one,
            every["lemma"],
        ),
        bound_check(
            "Prop. B.2, eq. 51, H positive definite: ‖g‖⁴ ≤ (gᵀHg)(gᵀH⁻¹g), so v⊥·∂‖g‖² ≥ 0",
            one,
            every["cauchy"],
        ),
        equality_check(
            "Prop. B.3 for n = 2: v⊥ is parallel to P⊥Hg", plane, torch.ones_like(plane)
        ),
        equality_check(
            "Prop. B.3 as printed, for n ≥ 3: v⊥ is parallel to P⊥Hg",
            space,
            torch.ones_like(space),
            expected=False,
        ),
        bound_check(
            "in its place: cos(v⊥, P⊥Hg) ≥ 2√κ/(1 + κ)",
            kantorovich_cosine(conditions),
            every["cosine"],
        ),
        equality_check(
            "‖g‖² grows along v⊥ at cos(v⊥, P⊥Hg) of the largest rate",
            every["ratio"],
            every["cosine"],
        ),
        bound_check(
            "eq. 58 as printed, with its factor 2, is orthogonal to g: |cos| ≤ 1e-8",
            every["factor"].abs(),
            1e-8,
            expected=False,
        ),
        equality_check(
            "eq. 58 with a factor of 1 is the steepest direction",
            every["parallel"],
            torch.ones_like(every["parallel"]),
        ),
    ]


def _on_a_function(points: int, generator: torch.Generator) -> Check:
    """Prop. B.2 by differentiating ||g||^2 along v_perp, on a function that is no quadratic."""
    function = random_skewed(4, 10.0, generator)
    rates, stated = [], []
    for _ in range(points):
        w = torch.randn(4, generator=generator, dtype=torch.float64)
        at = derivatives(function, w)
        v = newton_orthogonal(at.hessian, at.gradient)
        rates.append(float(v @ gradient(squared_gradient(function))(w)))
        g, product = at.gradient, at.product
        inverse = torch.linalg.solve(at.hessian, g)
        stated.append(float(2 * ((g @ inverse) * (g @ product) / (g @ g) - g @ g)))
    return equality_check(
        "eq. 50: v⊥·∂‖g‖² on a convex function, by differentiating ‖g‖²", rates, stated
    )


def _quantiles(values: Tensor) -> list[float]:
    found: list[float] = torch.quantile(values, torch.tensor(QUANTILES).double()).tolist()
    return found


@usual_style()
def _picture(table: dict[tuple[int, float], Draws]) -> bytes:
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    plane, spread = figure.subplots(1, 2)
    _figure_7(plane)
    for index, condition in enumerate(CONDITIONS):
        values = np.array([_quantiles(table[n, condition].cosine) for n in SIZES])
        colour = f"C{index}"
        spread.fill_between(SIZES, values[:, 1], values[:, 3], color=colour, alpha=0.2)
        spread.plot(SIZES, values[:, 2], ".-", color=colour, label=f"κ = {condition:g}")
        least = float(kantorovich_cosine(condition))
        spread.axhline(least, color=colour, linestyle=":", linewidth=1)
    spread.set(xscale="log", xlabel="dimension n", ylabel="cos(v⊥, P⊥Hg), median and 5 to 95 %")
    spread.set_xticks(SIZES, [str(n) for n in SIZES])
    spread.minorticks_off()
    spread.plot([], [], "k:", linewidth=1, label="least possible, 2√κ/(1 + κ)")
    spread.legend(fontsize=8)
    return png(figure)


def _figure_7(axes: Any) -> None:
    """The vectors of Prop. B.2 on an ellipse of two parameters, all drawn in length 1."""
    function = ellipse(2.0)
    w = torch.tensor([1.6, 0.6], dtype=torch.float64)
    at = derivatives(function, w)
    x, y = np.meshgrid(np.linspace(-2.2, 2.2, 100), np.linspace(-1.6, 1.6, 100))
    axes.contour(x, y, 0.5 * (x**2 + 4 * y**2), levels=12, colors="0.8", linewidths=0.8)
    arrows = {
        "v₁ = −g": -at.gradient,
        "v₂ = −H⁻¹g": -torch.linalg.solve(at.hessian, at.gradient),
        "v⊥": newton_orthogonal(at.hessian, at.gradient),
    }
    for index, (label, vector) in enumerate(arrows.items()):
        x_end, y_end = (vector / vector.norm()).tolist()
        axes.quiver(*w.tolist(), x_end, y_end, color=f"C{index}", label=label, angles="xy",
                    scale_units="xy", scale=1, width=0.008)  # fmt: skip
    axes.set(aspect="equal", xlabel="w₁", ylabel="w₂", title="directions, lengths set to 1")
    axes.legend(fontsize=8, loc="lower left")
