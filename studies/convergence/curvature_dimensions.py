"""Shifts of minima of more than one dimension, and curves on them (appendix F.2.2, Figure 9)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import jvp

from metaopt.measures.curvature import curvature
from studies.convergence.outcome import Check, bound_check, equality_check
from studies.geometry.sections import Section, height, mean_over_normal_planes
from studies.geometry.shifts import Circle, flat_mean, mean_distance, small_shift, torus_mean


def kappa_at(curve: Callable[[Tensor], Tensor], at: float = 0.0) -> float:
    """Compute kappa by metaopt.measures, from the first two derivatives."""

    def slope(t: Tensor) -> Tensor:
        tangent: Tensor = jvp(curve, (t,), (torch.ones_like(t),))[1]
        return tangent

    t = torch.tensor(at, dtype=torch.float64)
    second: Tensor = jvp(slope, (t,), (torch.ones_like(t),))[1]
    return float(curvature([slope(t)], [second]))


def more_dimensions(facts: dict[str, Any]) -> list[Check]:
    """F.2.2: minima of dimension n - 1, bent alike in all directions, or as a torus."""
    s, dimensions = 0.1, (2, 3, 4, 6)
    measured = [
        mean_distance(Circle.of_curvature(s), 1.0, n) / flat_mean(n) - 1 for n in dimensions
    ]
    stated = [small_shift([s] * (n - 1), 1.0) / flat_mean(n) - 1 for n in dimensions]
    tori = [(3.0, 1.0, False), (2.0, 1.0, False), (3.0, 1.0, True), (2.0, 0.5, True)]
    r = 0.02
    bends = [0.5 - torus_mean(big, small, r, inner) / r for big, small, inner in tori]
    principal = [
        (1 / small, -1 / (big - small) if inner else 1 / (big + small))
        for big, small, inner in tori
    ]
    facts["spheres"] = {"dimension": dimensions, "mean_over_flat_minus_1": measured, "kappa_r": s}
    facts["tori"] = {"principal_curvatures": principal, "flat_minus_mean": bends, "r": r}
    return [
        equality_check(
            "F.2.2: small shifts of spheres change the mean by (n-1)(n-3)/(8(n+1)) (kappa r)^2: "
            "less in the plane, not for n = 3, more for n >= 4",
            measured,
            stated,
            tolerance=1e-2,
        ),
        equality_check(
            "F.2.2: in 3 dimensions the mean falls by (kappa_1 - kappa_2)^2 r^2 / 64, tori",
            bends,
            [0.5 - small_shift(pair, r) for pair in principal],
            tolerance=1e-2,
        ),
        equality_check(
            "F.2.2: minima of one sectional curvature have one mean (sphere, torus with 2, 1/2)",
            0.5 - mean_distance(Circle(1.0), r, 3) / r,
            0.5 - torus_mean(1.5, 0.5, r) / r,
            expected=False,
        ),
    ]


def cut_curves(count: int, facts: dict[str, Any]) -> list[Check]:
    """Figure 9: curves cut by planes."""
    generator = torch.Generator().manual_seed(12)
    drawn = torch.rand(count, 4, generator=generator, dtype=torch.float64).numpy()
    cut = [Section((4 * a - 2, 4 * b - 2), math.pi * c, 1.4 * (2 * d - 1)) for a, b, c, d in drawn]
    ts = torch.linspace(-0.02, 0.02, 9, dtype=torch.float64)
    off = [[float(height(section.point(t), section.principal)) for t in ts] for section in cut]
    bowl, saddle = (1.0, 3.0), (1.0, -1.0)
    facts["sections"] = {
        "kappa": [section.curvature for section in cut],
        "mean_over_normal_planes_bowl_1_3": mean_over_normal_planes(bowl),
        "mean_over_normal_planes_saddle_1_-1": mean_over_normal_planes(saddle),
    }
    normal, leaning = Section(bowl, 0.4).curvature, Section(bowl, 0.4, 1.4).curvature
    return [
        equality_check("Fig. 9: the cut curves lie on the minimum", off, np.zeros_like(off)),
        equality_check(
            "Fig. 9: the curvature of a cut is |k1 cos^2 + k2 sin^2| / cos(tilt)",
            [kappa_at(section.point) for section in cut],
            [section.curvature for section in cut],
        ),
        bound_check(
            "Fig. 9: the tangent direction alone bounds the curvature of a cut",
            leaning,
            normal,
            expected=False,
        ),
        equality_check(
            "4.2: psi over normal planes is the mean curvature, k1 = 1, k2 = 3",
            mean_over_normal_planes(bowl),
            2.0,
        ),
        equality_check(
            "4.2: psi over normal planes is the mean curvature, at a saddle k1 = 1, k2 = -1",
            mean_over_normal_planes(saddle),
            0.0,
            expected=False,
        ),
    ]
