"""When one teleportation is enough: Def. 3.4, Props 3.5-3.7 and D.3 (eqs. 12, 65, 66, 73-77)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from metaopt.evaluation.figure import usual_style
from studies.convergence.one_teleport_algebra import algebra
from studies.convergence.one_teleport_counterexamples import drift, silent_symmetry
from studies.convergence.outcome import (
    Check,
    Outcome,
    bound_check,
    equality_check,
    png,
)
from studies.functions.level_set_examples import tilted_quartic, two_axes
from studies.functions.quadratic import Quadratic, booth, ellipse, random_quadratic
from studies.geometry.derivatives import slopes
from studies.geometry.fields import antisymmetric_basis
from studies.geometry.level_sets import on_level_set, steepest_point
from studies.geometry.optimal_flows import (
    bracket_rate_formula,
    descent,
    equation_12,
    loss_bracket,
    steepest_squares,
    times_at_steepest,
)

Array = NDArray[np.float64]
SERIES = ("levels", "ratio", "once", "always", "never", "fields")


@dataclass(frozen=True)
class Scale:
    """The sizes of the study."""

    points: int  # random ones, of each identity
    nodes: int  # of the quadrature of eq. 66
    levels: int  # at which flows are looked at
    size: int  # of the random quadratic


QUICK = Scale(points=1, nodes=16, levels=9, size=3)
FULL = Scale(points=8, nodes=24, levels=41, size=6)


@dataclass(frozen=True)
class Descent:
    """A flow from the steepest point of the first level, beside teleporting at all times."""

    levels: Array
    ratio: Array  # ||g||^2 / max over the level set
    once: Array  # times to the levels, after one teleport
    always: Array  # teleporting at all times
    never: Array  # from a random point of the first level
    fields: Array  # (3 or 5, 3), of ``_fields`` along the flow

    @property
    def loss(self) -> float:
        """Time after one teleport by time when teleporting at all times."""
        return float(self.once[-1] / self.always[-1])

    @property
    def rates(self) -> tuple[float, float]:
        """−d log L/dt over the last two levels: after one teleport, and teleporting always."""
        fall = float(np.log(self.levels[-2] / self.levels[-1]))
        return fall / float(np.diff(self.once)[-1]), fall / float(np.diff(self.always)[-1])


def study(quick: bool) -> Outcome:
    """The identities, flows on quadratics and others, and the invalid inference."""
    scale = QUICK if quick else FULL
    generator = torch.Generator().manual_seed(0)
    identities, identity_facts = algebra(scale.points, scale.nodes, generator)
    drifting, drift_facts = drift()
    silent, silent_facts = silent_symmetry()
    quadratics = {
        "ellipse": ellipse(),
        "Booth": booth(),
        "random": random_quadratic(scale.size, 10.0, generator),
    }
    flat = {name: _quadratic(q, scale.levels, generator) for name, q in quadratics.items()}
    bent = {
        "tilted quartic": _descend(tilted_quartic(), 10.0, 1e-5, scale.levels, generator),
        "two axes": _descend(two_axes, 1.5, 1e-5, scale.levels, generator),
    }
    checks = [*identities, *_enough(flat), *_not_enough(bent), *drifting, *silent]
    facts: dict[str, Any] = {
        "scale": asdict(scale),
        "constants": "max ||g||^2 is 2 beta (L - L*) for quadratics, and that of the point that "
        "solves H g = lambda_0 g on the level set for others; times by scipy's DOP853",
        "identities": identity_facts,
        "flows": {
            name: {
                **{key: getattr(d, key).tolist() for key in SERIES},
                "time_once_by_always": d.loss,
                "last_rates_once_and_always": d.rates,
            }
            for name, d in {**flat, **bent}.items()
        },
        "fields": "columns: the largest |[A, R]L|, |R[A, R]L| and 2 |eq. 12| over A = M g with the "
        "basis of antisymmetric M, the first by 2 ||M g|| ||H g||, the others by that times "
        "||H g|| / ||g||",
        "drift": drift_facts,
        "silent_symmetry": silent_facts,
    }
    return Outcome("one-teleport", checks, facts, _picture({**flat, **bent}))


def _quadratic(q: Quadratic, count: int, generator: torch.Generator) -> Descent:
    """From level 5 to 5e-4, with the maximum in closed form."""
    levels = np.geomspace(5.0, 5e-4, count)
    start = q.steepest_point(5.0)
    squares = np.array([float(q.largest_squared_gradient(level)) for level in levels])
    always = np.log(levels[0] / levels) / (2 * q.beta)
    return _compare(q, q.minimizer, start, levels, squares, always, generator)


def _descend(
    function: Callable[[Tensor], Tensor],
    high: float,
    low: float,
    count: int,
    generator: torch.Generator,
) -> Descent:
    """Of two variables, with the minimum 0 at 0."""
    levels = np.geomspace(high, low, count)
    zero = torch.zeros(2, dtype=torch.float64)
    start = steepest_point(function, zero, high, generator).point
    squares = steepest_squares(function, zero, levels.tolist(), generator)
    always = times_at_steepest(levels, squares)
    return _compare(function, zero, start, levels, squares, always, generator)


def _compare(
    function: Callable[[Tensor], Tensor],
    minimizer: Tensor,
    start: Tensor,
    levels: Array,
    squares: Array,
    always: Array,
    generator: torch.Generator,
) -> Descent:
    flow = descent(function, start, levels)
    drawn = torch.randn(1, len(minimizer), generator=generator, dtype=torch.float64)
    other = on_level_set(function, minimizer, float(levels[0]), drawn)[0]
    looked_at = np.linspace(0, len(levels) - 1, 3 if len(levels) < 20 else 5).astype(int)
    fields = [_fields(function, w) for w in flow.points[looked_at]]
    never = descent(function, other, levels, tolerance=1e-8).times  # only to compare
    return Descent(levels, flow.squares / squares, flow.times, always, never, np.array(fields))


def _fields(function: Callable[[Tensor], Tensor], w: Tensor) -> list[float]:
    """The largest over A of |[A, R]L|, |R[A, R]L| and 2 |eq. 12|, in units of ||M g|| and lengths.

    The first by 2 ||M g|| ||H g||, the others by 2 ||M g|| ||H g||^2 / ||g||.
    """
    at = slopes(function, w)
    rows = []
    for m in antisymmetric_basis(len(w)):
        unit = 2 * float((m @ at.gradient).norm() * at.product.norm())
        if unit > 0:
            pace = unit * float(at.product.norm() / at.gradient.norm())
            rows.append(
                [
                    abs(float(loss_bracket(function, m)(w))) / unit,
                    abs(float(bracket_rate_formula(function, w, m))) / pace,
                    2 * abs(float(equation_12(function, w, m))) / pace,
                ]
            )
    largest: list[float] = np.max(rows, axis=0).tolist()
    return largest


def _enough(flat: dict[str, Descent]) -> list[Check]:
    names = ", ".join(flat)
    return [
        equality_check(
            f"quadratics ({names}): the flow from a steepest point stays steepest",
            np.concatenate([d.ratio for d in flat.values()]),
            np.ones(sum(len(d.ratio) for d in flat.values())),
        ),
        equality_check(
            "quadratics: teleporting at all times is no faster than once",
            np.concatenate([d.once for d in flat.values()]),
            np.concatenate([d.always for d in flat.values()]),
        ),
        bound_check(
            "quadratics: |[A, R]L| = 0 along the flow, to 1e-8 of 2‖Mg‖‖Hg‖",
            [float(d.fields[:, 0].max()) for d in flat.values()],
            1e-8,
        ),
        bound_check(
            "quadratics: a flow without a teleport is slower",
            [float(d.once[-1]) for d in flat.values()],
            [float(d.never[-1]) for d in flat.values()],
        ),
    ]


def _not_enough(bent: dict[str, Descent]) -> list[Check]:
    tilted, axes = bent["tilted quartic"], bent["two axes"]
    return [
        bound_check(
            "tilted quartic: one teleport keeps the flow within 1 % of the steepest",
            1 / tilted.ratio,
            1.01,
            expected=False,
        ),
        bound_check(
            "tilted quartic: one teleport takes at most 1 % longer than teleporting at all times",
            tilted.once[-1],
            1.01 * tilted.always[-1],
            expected=False,
        ),
        equality_check(
            "−d log L/dt at the end: 2 λmin(H(w*)) after one teleport, 2 λmax(H(w*)) teleporting "
            "at all times, to 1e-3 as L is not 0 yet",
            [d.rates for d in bent.values()],
            [[2.0, 8.0] for _ in bent],
            tolerance=1e-3,
        ),
        bound_check(
            "no point of these flows is steeper than the steepest found on its level set",
            np.concatenate([d.ratio for d in bent.values()]),
            1.0,
        ),
        bound_check(
            "two axes: one teleport takes at most 1 % longer than teleporting at all times",
            axes.once[-1],
            1.01 * axes.always[-1],
            expected=False,
        ),
        bound_check(
            "tilted quartic: the flow leaves the points optimal by Def. 3.4; it stays there to "
            "1e-8 (control)",
            float(tilted.fields[:, 0].max()),
            1e-8,
            expected=False,
        ),
        bound_check(
            "two axes: the flow is optimal by Def. 3.4, |[A, R]L| = 0 to 1e-8 of 2‖Mg‖‖Hg‖",
            float(axes.fields[:, 0].max()),
            1e-8,
        ),
        bound_check(
            "Def. 3.4 read as 'the largest gradient norm in its level set': such a flow is within "
            "1 % of the steepest",
            1 / axes.ratio,
            1.01,
            expected=False,
        ),
    ]


@usual_style()
def _picture(flows: dict[str, Descent]) -> bytes:
    figure = Figure(figsize=(12, 4), layout="constrained")
    ratios, tilted, axes = figure.subplots(1, 3)
    for index, (name, d) in enumerate(flows.items()):
        style = "-" if index > 2 else (0, (4 - index, 2 + index))
        ratios.semilogx(d.levels / d.levels[0], d.ratio, linestyle=style, label=name)
    ratios.set(xlabel="L / L at the teleport", ylabel="‖g‖² / largest on the level set")
    ratios.set_ylim(0, 1.05)
    for panel, name in ((tilted, "tilted quartic"), (axes, "two axes")):
        d = flows[name]
        for label, times in (("none", d.never), ("one", d.once), ("at all times", d.always)):
            panel.semilogy(times, d.levels, label=f"teleports: {label}")
        panel.set(xlabel="time t of the gradient flow", ylabel="L − L*", title=name)
    for panel in (ratios, tilted, axes):
        panel.minorticks_off()
        panel.legend(fontsize=8, loc="lower right" if panel is ratios else "upper right")
    return png(figure)
