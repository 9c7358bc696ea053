"""Learned and other teleportation on families with a known symmetry (arXiv 2504.15399).

Ellipses and Rosenbrock functions, random members. All numbers of a method (rate, momentum, how
often to teleport) are chosen on validation members, learned rules are trained on training members
and chosen on validation members, and everything is reported on test members.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from metaopt.tasks.seeds import first_seeds
from studies.convergence.family_checks import checks_of
from studies.convergence.family_methods import (
    METHODS,
    TARGET,
    Grid,
    Method,
    run,
    steps_to_target,
    tuned,
)
from studies.convergence.learned_rotation import (
    VARIANTS,
    Rules,
    Training,
    initial,
    trained,
)
from studies.convergence.outcome import Check, Outcome
from studies.convergence.symmetric_families_figure import picture
from studies.functions.families_2d import FAMILIES_2D, Family2D

Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Scale:
    validation: int  # members
    test: int
    starts: int  # of each test member; 2 of the others
    steps: int
    grid: Grid
    meta_seeds: int
    training: Training


FULL = _Scale(
    validation=12,
    test=24,
    starts=3,
    steps=500,
    grid=Grid(tuple(np.geomspace(1e-4, 3, 21).tolist()), (0.5, 0.9), (1, 5)),
    meta_seeds=5,
    training=Training(),
)
QUICK = _Scale(
    validation=6,
    test=6,
    starts=2,
    steps=60,
    grid=Grid(tuple(np.geomspace(1e-3, 1, 5).tolist()), (0.9,), (1, 5)),
    meta_seeds=2,
    training=Training(meta_steps=24, members=16, pool=64, every=12, horizon=30),
)


class Compared(NamedTuple):
    """One family: what each method reached on the test members."""

    members: Family2D
    starts: Tensor  # (B, 2)
    methods: list[Method]  # as tuned
    losses: dict[str, Array]  # L_t / L_0, (steps + 1, B); of a learned rule, of all meta-seeds
    steps: dict[str, Array]  # to the target, (B,), or (meta-seeds, B)
    rules: Rules


def study(quick: bool) -> Outcome:
    """Run the study on both families."""
    scale = QUICK if quick else FULL
    facts: dict[str, Any] = {"target": TARGET, "steps": scale.steps}
    checks: list[Check] = []
    compared: dict[str, Compared] = {}
    for name, family in FAMILIES_2D.items():
        compared[name] = compare(family, scale)
        facts[name] = _table(compared[name])
        one = compared[name]
        checks += checks_of(name, one.members, one.starts, one.rules, facts[name])
    facts["constants"] = (
        "the steepest point of an orbit as the maximum of a trigonometric polynomial, by "
        "Newton's method from a grid (families_2d.py); smoothness and strong convexity of "
        "ellipses from their eigenvalues. A median that is null was not reached. Steps are "
        "gradient steps: an exact teleport costs 10 gradients more, one by level sets up to 50 "
        "Hessian-vector products, a learned one a pass through h and its Jacobian; Newton and "
        "1/lambda_0 need the Hessian, or a product with it"
    )
    return Outcome("symmetric-families", checks, facts, picture(compared))


def compare(family: type[Family2D], scale: _Scale) -> Compared:
    """Tune, train, and run on the test members."""
    validation = family.drawn(first_seeds("validation", scale.validation), 2)
    members, starts = family.drawn(first_seeds("test", scale.test), scale.starts)
    methods = [tuned(method, *validation, scale.steps, scale.grid)[0] for method in METHODS]
    losses = {method.name: run(members, starts, [method], scale.steps)[:, 0] for method in methods}
    steps = {name: steps_to_target(relative) for name, relative in losses.items()}
    rate = 0.1 * (methods[0].rate or 0.0)  # to start from: teleports go where it is steeper
    rules, _ = trained(family, validation, initial(range(scale.meta_seeds), rate), scale.training)
    relative = rules.run(members, starts, scale.steps)
    for i, variant in enumerate(VARIANTS):
        own = relative[:, i * scale.meta_seeds : (i + 1) * scale.meta_seeds]
        losses[variant.name] = own.flatten(1)
        steps[variant.name] = steps_to_target(own)
    as_arrays = {name: values.numpy() for name, values in losses.items()}
    return Compared(members, starts, methods, as_arrays, steps, rules)


def _table(one: Compared) -> dict[str, Any]:
    """Median and 90th percentile of the steps, and the share that reaches the target."""
    table: dict[str, Any] = {}
    for method in one.methods:
        often = {None: "never", math.inf: "at the start"}.get(method.every, method.every)
        tuning = {"rate": method.rate, "momentum": method.momentum, "teleports_every": often}
        table[method.name] = {**_summary(one.steps[method.name]), **tuning}
    for variant in VARIANTS:
        each = [_summary(steps) for steps in one.steps[variant.name]]
        medians = [summary["median"] for summary in each]
        table[variant.name] = {
            "median_of_each_meta_seed": medians,
            "share_of_each_meta_seed": [summary["share"] for summary in each],
            "median": float(np.median(medians)),
            "best": min(medians),
            "worst": max(medians),
        }
    return table


def _summary(steps: Array) -> dict[str, float]:
    quantiles = np.quantile(steps, (0.5, 0.9), method="inverted_cdf")
    return {
        "median": float(quantiles[0]),
        "ninth_decile": float(quantiles[1]),
        "share": float(np.isfinite(steps).mean()),
    }
