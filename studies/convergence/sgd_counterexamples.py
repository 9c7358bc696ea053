"""Counterexamples: what Theorem 3.1 does not cover, and where the text after it claims too much.

GL on a two-layer linear network has orbits without a steepest point; and a teleport before each
step may end higher than plain descent, for a strictly convex function of two variables.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from metaopt.errors import UserError
from studies.convergence.outcome import Check, bound_check
from studies.convergence.stochastic import Array
from studies.geometry.level_curves import LevelCurves
from studies.geometry.steepest import batched_gradient, largest_on_line


def network_steepness(u: float, v: float, log_scale: Tensor) -> Tensor:
    """||grad L||^2 of 1/2 (u v - 1)^2 at (s u, v / s), s = exp(log_scale)."""
    s = log_scale.exp()
    return (u * v - 1) ** 2 * ((s * u).square() + (v / s).square())


def network_check(u: float = 2.0, v: float = 1.0) -> Check:
    """Whether the largest gradient on the orbit of a two-layer linear network is attained."""
    near, far = network_steepness(u, v, torch.tensor([8.0, 16.0], dtype=torch.float64))
    try:
        largest_on_line(lambda t: network_steepness(u, v, t))
        attained = True
    except UserError:
        attained = False
    statement = "Theorem 3.1 for GL on 1/2 (u v - 1)^2: the maximum of eq. 6 exists, as printed"
    return Check(statement, False, attained, float(near / far))


def quartic(w: Tensor) -> Tensor:
    """x^2/2 + y^2/4 + .0508 y^4: strictly convex; beta = 1.4306 where L <= 1/2."""
    return w[..., 0].square() / 2 + w[..., 1].square() / 4 + 0.0508 * w[..., 1] ** 4


def quartic_losses(steps: int, teleport: bool, beta: float) -> Array:
    """L(w_t), t = 0, ..., T, of gradient descent from (1, 0)."""
    curves = LevelCurves(quartic, torch.zeros(2, dtype=torch.float64))
    w = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    losses = [float(quartic(w))]
    for _ in range(steps):
        v = curves.steepest(w) if teleport else w
        w = v - batched_gradient(quartic, v) / (beta * math.sqrt(steps - 1))
        losses.append(float(quartic(w)))
    return np.array(losses)


def quartic_beta(level: float = 0.5) -> float:
    """The largest second derivative where L <= level: 1/2 + 12 c y^2 at the top of {L = level}."""
    top = (-0.25 + math.sqrt(0.0625 + 4 * 0.0508 * level)) / (2 * 0.0508)
    return 0.5 + 12 * 0.0508 * top


def one_step_check(beta: float) -> Check:
    """What holds of one step: convexity bounds plain descent, the descent lemma the teleported."""
    eta = 1 / (2 * beta)
    angles = torch.rand(100, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    curves = LevelCurves(quartic, torch.zeros(2, dtype=torch.float64))
    w = curves.points(2 * math.pi * angles, torch.linspace(0.01, 0.5, 100, dtype=torch.float64))
    v = curves.steepest(w)
    slopes = [batched_gradient(quartic, x) for x in (w, v)]
    plain, teleported = (x - eta * g for x, g in zip((w, v), slopes, strict=True))
    squares = [g.square().sum(-1) for g in slopes]
    enough = squares[1] * (1 - eta * beta / 2) >= squares[0]
    assert bool(enough.any())
    return bound_check(
        "one step with a teleport ends no higher where ||g'||^2 (1 - eta beta / 2) >= ||g||^2",
        quartic(teleported)[enough].numpy(),
        quartic(plain)[enough].numpy(),
    )
