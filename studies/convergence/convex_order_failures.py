"""How max ||grad L||^2 over a level set may fail to rise with the level, beside Proposition A.2.

Where L is not convex; where it is convex, not strictly; where it is strictly convex, but no maximum
is attained.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from metaopt.errors import UserError
from studies.convergence.outcome import Check, bound_check, equality_check
from studies.convergence.stochastic import Array
from studies.functions.convexity import (
    PlanarFunction,
    exponentials,
    exponentials_level,
    huber,
    narrowing_cone,
    narrowing_cone_level,
)
from studies.geometry.level_curves import LevelCurves
from studies.geometry.rotations import RadialFamily
from studies.geometry.steepest import batched_gradient, largest_on_circles, largest_on_line

STRICT = 1e-9  # relative: a rise that is smaller counts as none
ORIGIN = torch.zeros(2, dtype=torch.float64)


class Climb(NamedTuple):
    """F over levels, ``(m,)`` each, and where it is attained."""

    levels: Array
    largest: Array
    points: Tensor  # (m, 2)


def climb(function: PlanarFunction, levels: Tensor, minimizer: Tensor = ORIGIN) -> Climb:
    """F(x) on the level sets of a function that has a minimiser."""
    curves = LevelCurves(function, minimizer)
    found = curves.largest(levels)
    return Climb(levels.numpy(), found.value.numpy(), curves.points(found.where, levels))


def rise_check(statement: str, largest: Array, expected: bool = True) -> Check:
    """F rises strictly from level to level; the margin is the least ratio of successive values."""
    ratio = float((largest[1:] / largest[:-1]).min())
    return Check(statement, expected, ratio > 1 + STRICT, ratio)


def pairs_check(
    statement: str, seen: Climb, function: PlanarFunction, points: Tensor, expected: bool = True
) -> Check:
    """Check that max_g ||grad L(g.w_1)||^2 <= ||grad L(w_2)||^2 gives L(w_1) <= L(w_2).

    Args:
        statement: what the check says.
        seen: the w_1 are its points, one a level.
        function: L.
        points: the w_2, ``(k, 2)``.
        expected: whether it should hold.
    """
    squares = batched_gradient(function, points).square().sum(-1).numpy()
    below = seen.largest[:, None] <= squares
    reached = np.where(below, seen.levels[:, None], -math.inf).max(axis=0)
    some = np.isfinite(reached)
    return bound_check(statement, reached[some], function(points).numpy()[some], expected)


def well() -> RadialFamily:
    """1 - exp(-|h|^2 / 2), h = (w_1, w_2 + sin(w_1) / 2): levels up to 1, not convex."""

    def bend(w: Tensor, sign: float) -> Tensor:
        return torch.stack([w[..., 0], w[..., 1] + sign * w[..., 0].sin() / 2], -1)

    return RadialFamily(
        lambda square: 1 - (-square / 2).exp(), lambda w: bend(w, 1.0), lambda z: bend(z, -1.0)
    )


def failing_checks() -> tuple[dict[str, Climb], list[Check]]:
    """Where L is not convex, and where it is convex but not strictly."""
    levels = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    family = well()
    radii = (-2 * (1 - levels).log()).sqrt()
    top = largest_on_circles(family.steepness, radii)
    points = family.circle(top.where, radii)
    seen = {
        "well": Climb(levels.numpy(), top.value.numpy(), points),
        "huber": climb(huber, torch.linspace(0.1, 3.0, 16, dtype=torch.float64)),
    }
    functions: dict[str, PlanarFunction] = {"well": family, "huber": huber}
    checks = []
    for name, why in (("well", "not convex"), ("huber", "convex, not strictly")):
        found, label = seen[name], f"{name}, {why}, as if it were strictly convex"
        checks += [
            rise_check(f"F rises with the level: {label}", found.largest, expected=False),
            pairs_check(f"Prop. A.2: {label}", found, functions[name], found.points, False),
        ]
    checks.append(bound_check("F does not fall with the level: huber", *_steps(seen["huber"])))
    return seen, checks


def _steps(seen: Climb) -> tuple[Array, Array]:
    return seen.largest[:-1], seen.largest[1:]


def open_steepness(name: str, level: float, t: Tensor) -> Tensor:
    """||grad L||^2 along an unbounded level set, ``(k,)``."""
    if name == "exponentials":
        slope = batched_gradient(exponentials, exponentials_level(t, level))
    else:
        slope = batched_gradient(narrowing_cone, narrowing_cone_level(t, level))
    return slope.square().sum(-1)


def attained(name: str, level: float) -> bool:
    """Whether the largest gradient on an unbounded level set is."""
    try:
        largest_on_line(lambda t: open_steepness(name, level, t))
    except UserError:
        return False
    return True


def open_checks() -> list[Check]:
    """Strictly convex functions without a minimiser."""
    levels = np.linspace(0.3, 0.9, 7)
    far = torch.tensor([-16.0, 16.0], dtype=torch.float64)
    suprema = {
        name: np.array([float(open_steepness(name, x, far).max()) for x in levels])
        for name in ("exponentials", "narrowing-cone")
    }
    checks = [
        Check(
            f"Prop. A.2 on {name}, level 1/2: the maximum is attained, as printed",
            False,
            attained(name, 0.5),
            float(open_steepness(name, 0.5, far / 2).max() / open_steepness(name, 0.5, far).max()),
        )
        for name in suprema
    ]
    return [
        *checks,
        equality_check(
            "exponentials: the supremum is level^2 (to 1e-6: read off at t = 16)",
            suprema["exponentials"],
            levels**2,
            1e-6,
        ),
        rise_check(
            "F, as a supremum that is not attained, rises: narrowing-cone below 1, as printed",
            suprema["narrowing-cone"],
            expected=False,
        ),
        Check(
            "narrowing-cone, level 2: the maximum is attained",
            True,
            attained("narrowing-cone", 2.0),
            float(open_steepness("narrowing-cone", 2.0, 0 * far).max()),
        ),
    ]
