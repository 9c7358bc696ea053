"""Checks of the study symmetric-families: what teleportation does on each member of a family."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from studies.convergence.family_methods import (
    START_ONLY,
    Method,
    by_level_set,
    run,
    steps_to_target,
)
from studies.convergence.learned_rotation import Rules
from studies.convergence.outcome import Check, bound_check, equality_check
from studies.functions.families_2d import Ellipses, Family2D

PLAIN = Method("no teleport")
START = replace(PLAIN, every=START_ONLY)
ALWAYS = replace(PLAIN, every=1)
STEPS = 200  # of the comparison; a target that is not reached counts as one more
FLOOR = 1e-10  # of L_t / L_0, below which w - c has lost too many digits to compare


def checks_of(
    name: str, members: Family2D, starts: Tensor, rules: Rules, facts: dict[str, Any]
) -> list[Check]:
    """Make the checks of one family."""
    level = members.loss(starts)
    turns = 2 * math.pi * torch.arange(720, dtype=torch.float64) / 720
    angles = turns[:, None].expand(-1, len(starts))
    around = members.rotate(starts.expand(720, *starts.shape), angles)
    steepest = members.steepest(starts)
    gradient = members.gradient(steepest)
    newton = torch.linalg.solve(members.hessian(steepest), gradient)
    cosine = (gradient * newton).sum(-1) / (gradient.norm(dim=-1) * newton.norm(dim=-1))
    with torch.no_grad():
        learned = rules.teleport(members, starts.expand(len(rules.rotates), *starts.shape))[0]
    found = by_level_set(members, starts)
    share = members.steepness(found) / members.steepness(steepest)
    facts["level_set_steepness_over_steepest"] = {
        "median": float(share.median()),
        "least": float(share.min()),
    }
    checks = [
        equality_check(
            f"{name}: rotating h(w) keeps the loss",
            members.loss(around),
            level.expand(720, -1),
        ),
        equality_check(
            f"{name}: a learned teleport keeps the loss",
            members.loss(learned),
            level.expand(len(learned), -1),
        ),
        bound_check(
            f"{name}: no point of the orbit is steeper than the steepest point",
            members.steepness(around).amax(0),
            members.steepness(steepest),
        ),
        bound_check(
            f"{name}: level-set teleportation ends no steeper than its level set's steepest point",
            members.steepness(found),
            members.steepness(members.steepest(found)),
        ),
        equality_check(
            f"{name}: at the steepest point the gradient has Newton's direction (section 3.2)",
            cosine.abs(),
            torch.ones_like(cosine),
        ),
    ]
    checks.append(one_teleport_suffices(name, members, starts))
    return checks + (_ellipses(members, starts) if isinstance(members, Ellipses) else [])


def one_teleport_suffices(name: str, members: Family2D, starts: Tensor) -> Check:
    """The losses of a teleport at the start against those of one at each step (section 3.3)."""
    bend = torch.linalg.eigvalsh(members.hessian(torch.stack((starts, members.steepest(starts)))))
    rate = 0.2 / float(bend.max())
    start, always = (run(members, starts, [replace(m, rate=rate)], 10) for m in (START, ALWAYS))
    return equality_check(
        f"{name}: one teleport at the start is as good as one at each step (3.3: for quadratics)",
        start,
        always,
        expected=isinstance(members, Ellipses),
    )


def _ellipses(members: Ellipses, starts: Tensor) -> list[Check]:
    """Quadratics, where all of it is known."""
    steepest = members.steepest(starts)
    low, high = members.eigenvalues.unbind(-1)
    newton, scaled = (
        run(members, starts, [method], 1)[1]
        for method in (
            Method("Newton", rate=None, newton=True),
            Method("1/λ0", rate=None, every=1),
        )
    )
    return [
        equality_check("ellipse: Newton reaches the minimum in one step", newton, 0 * newton),
        equality_check(
            "ellipse: so does a teleport with a step of 1/λ0 (Prop. 3.3, G = 0)",
            scaled,
            0 * scaled,
        ),
        equality_check(
            "ellipse: the largest squared gradient of a level set is 2 β L",
            members.steepness(steepest),
            2 * high * members.loss(starts),
        ),
        *_after_teleport(members, starts, 2 / (low + high), 2 / high),
    ]


def _after_teleport(
    members: Ellipses, starts: Tensor, balanced: Tensor, stable: Tensor
) -> list[Check]:
    """Gradient descent with and without a teleport at the start, each member at its own rate.

    Up to 2 / (mu + beta), ``balanced``, the steepest direction shrinks fastest; between it and the
    largest stable rate, 2 / beta, it shrinks slowest.
    """
    shares = (0.1, 0.3, 0.6, 0.9, 1.0)
    small = [_both(members, starts, share * balanced) for share in shares]
    large = _both(members, starts, (balanced + stable) / 2)
    plain, teleported = (
        np.minimum(np.stack([steps_to_target(pair[i]) for pair in [*small, large]]), STEPS + 1)
        for i in (0, 1)
    )
    return [
        bound_check(
            "ellipse: after a teleport every L_t is at most that without, rates up to 2/(μ+β)",
            np.stack([pair[1].clamp(min=FLOOR) for pair in small]),
            np.stack([pair[0].clamp(min=FLOOR) for pair in small]),
        ),
        bound_check(
            "ellipse: a teleport at the start needs no more steps than none, rates up to 2/(μ+β)",
            teleported[:-1],
            plain[:-1],
        ),
        bound_check(
            "ellipse: a teleport at the start needs no more steps than none, at every stable rate",
            teleported[-1],
            plain[-1],
            expected=False,
        ),
    ]


def _both(members: Ellipses, starts: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """L_t / L_0 without and with a teleport, ``(steps + 1, B)``."""
    found = []
    for w in (starts, members.steepest(starts)):
        losses = [members.loss(w)]
        for _ in range(STEPS):
            w = w - rate.unsqueeze(-1) * members.gradient(w)
            losses.append(members.loss(w))
        found.append(torch.stack(losses) / losses[0])
    return found[0], found[1]
