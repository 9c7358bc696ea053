"""Figures 2 and 3: sharpness, and curvature of the minimum, under shifts of the landscape.

On a network with two weights everything has a closed form; on networks of width 2 the curves of
eq. 78 are followed. What a shift of the data does is not what a rigid shift of the landscape does:
along an orbit the network is the same function (everywhere under rescaling, on the batch under
eq. 78), so the loss rises by the same at its sharp and its flat points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import quad, solve_ivp
from torch import Tensor

from metaopt.measures import Hessian
from metaopt.measures.curvature import mean_curvature
from metaopt.symmetry import (
    Identity,
    LayerChain,
    LayerInput,
    LeakyReLU,
    chain_orbit,
    make_action,
)
from studies.convergence.landscapes_figure import picture
from studies.convergence.landscapes_wide import checks_of, curves
from studies.convergence.outcome import (
    Check,
    Outcome,
    bound_check,
    equality_check,
    order_check,
)
from studies.functions.scalar_network import ScalarNetwork, distance_to_hyperbola
from studies.geometry.shifts import small_shift

Array = NDArray[np.float64]
SHARP, FLAT = 3.0, 1.0  # g of the two points: (3, 1/3) and (1, 1)
CHAIN = LayerChain((LeakyReLU(0.1), Identity()), (False, False))


def study(quick: bool) -> Outcome:
    """The scalar network in closed form, then networks of width 2."""
    network = ScalarNetwork.fitted(torch.tensor([0.5, -1.0, 1.5], dtype=torch.float64), 1.0)
    points = [network.minimizer(float(g)) for g in np.geomspace(FLAT, SHARP, 5 if quick else 13)]
    wide = curves(24 if quick else 300, 11 if quick else 41, seed=3)
    flows = {name: flow(network, network.minimizer(g)) for name, g in _named().items()}
    facts: dict[str, Any] = {"scalar": {"product": network.product, "S": network.size}}
    checks = _along(network, points, facts["scalar"])
    checks += _flows(network, flows, facts["scalar"])
    checks += _data_shifts(network, points, facts["scalar"])
    checks += _rigid_shifts(network, facts["scalar"]) + checks_of(wide, facts)
    facts["constants"] = (
        "sharpness, curvature, ends of flows and mean rises in closed form (scalar_network.py), "
        "measured by metaopt.measures, DOP853 and quadrature; J and dF/dX by reverse-mode "
        "differentiation. Tolerances above 1e-8: the late rate of a flow has a term of the order "
        "of the root of the loss; first-order distances leave a term of second order; shifts of "
        "1e-6 leave 10 digits"
    )
    return Outcome("landscapes", checks, facts, picture(network, flows, _named(), wide))


def _named() -> dict[str, float]:
    return {"sharp": SHARP, "flat": FLAT}


class Flow(NamedTuple):
    """A gradient flow to a point of the minimum."""

    t: Array  # (T,)
    points: Array  # (T, 2)
    losses: Array  # (T,)
    end: Tensor  # (2,) where it should end


def flow(network: ScalarNetwork, end: Tensor) -> Flow:
    """From u v = 2.5 c, at a loss that all such starts share."""
    start = network.flow_start(end, 2.5 * network.product)

    def velocity(_: float, w: Array) -> Array:
        at = torch.tensor(w, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(network(at), at)
        return -slope.numpy()

    time = 28 / network.sharpness(end)
    t = np.linspace(0, time, 120)
    solved = solve_ivp(
        velocity, (0, time), start.numpy(), "DOP853", t_eval=t, rtol=1e-11, atol=1e-13
    )
    points = np.asarray(solved.y.T)
    return Flow(t, points, network(torch.from_numpy(points)).numpy(), end)


def _along(network: ScalarNetwork, points: Sequence[Tensor], facts: dict[str, Any]) -> list[Check]:
    """Loss, sharpness and curvature along gamma."""
    start = [points[0][:1, None], points[0][1:, None]]
    orbit = chain_orbit(CHAIN, start, LayerInput(network.x[None]), make_action("rescaling"))
    one = [torch.ones(1, dtype=torch.float64)]
    kappas = [float(mean_curvature(orbit, [w[:1, None], w[1:, None]], [one])) for w in points]
    sharp = [float(Hessian(lambda p: network(p[0]), [w]).largest(1)[0]) for w in points]
    moved = orbit.move(start, orbit.elements(start, [0.7 * one[0]])).parameters
    elsewhere = torch.cat([tensor.flatten() for tensor in moved])
    facts["sharpness"], facts["kappa"] = sharp, kappas
    fit = torch.stack([*points, elsewhere])
    return [
        equality_check(
            "rescaling: the loss stays 0 along gamma", network(fit), torch.zeros(len(fit))
        ),
        equality_check(
            "scalar network: sharpness is S (u^2 + v^2)",
            sharp,
            [network.sharpness(w) for w in points],
        ),
        equality_check(
            "scalar network: kappa is 2 c (S / sharpness)^(3/2), a sharper point is less curved",
            kappas,
            [2 * network.product * (network.size / value) ** 1.5 for value in sharp],
        ),
    ]


def _flows(network: ScalarNetwork, flows: dict[str, Flow], facts: dict[str, Any]) -> list[Check]:
    """Fig. 2: flows into a sharp and a flat point, from one loss."""
    kept = [float(np.ptp(one.points[:, 0] ** 2 - one.points[:, 1] ** 2)) for one in flows.values()]
    rates = []
    for one in flows.values():
        late = (one.losses < 1e-5 * one.losses[0]) & (one.losses > 1e-9 * one.losses[0])
        rates.append(-float(np.polyfit(one.t[late], np.log(one.losses[late]), 1)[0]))
    stated = [2 * network.sharpness(one.end) for one in flows.values()]
    facts["flows"] = {"late_rate": rates, "twice_sharpness": stated, "kept_to": kept}
    facts["first_losses"] = [float(one.losses[0]) for one in flows.values()]
    return [
        equality_check(
            "Fig. 2: gradient flow ends at the point with the same u^2 - v^2",
            [one.points[-1] for one in flows.values()],
            torch.stack([one.end for one in flows.values()]),
        ),
        equality_check("Fig. 2: gradient flow keeps u^2 - v^2", kept, [0.0, 0.0]),
        equality_check(
            "Fig. 2: the late rate of the loss is twice the sharpness", rates, stated, 1e-2
        ),
    ]


def _data_shifts(
    network: ScalarNetwork, points: Sequence[Tensor], facts: dict[str, Any]
) -> list[Check]:
    """What new inputs and targets do to the loss, and how far the new minimum is."""
    noise = torch.tensor([0.3, -0.2, 0.4], dtype=torch.float64)
    new_y = ScalarNetwork(network.x, network.y + noise)
    new_x = ScalarNetwork(network.x + noise, network.y)
    at = torch.stack(list(points))
    by_y, by_x = new_y(at), new_x(at)
    flat, sharp = network.minimizer(FLAT), network.minimizer(SHARP)
    changes = np.geomspace(1e-3, 1e-1, 7)
    c = network.product
    errors = [
        abs(distance_to_hyperbola(flat.numpy(), c + d) - d / float(flat.norm())) for d in changes
    ]
    small = 1e-4
    near = np.array([distance_to_hyperbola(w.numpy(), c + small) for w in points])
    root = np.sqrt([network.sharpness(w) for w in points])
    facts["rise_by_y"], facts["rise_by_x"] = by_y.tolist(), by_x.tolist()
    facts["distance_to_new_minimum_over_change_of_c"] = (near / small).tolist()
    rises = {
        "targets": (float(new_y(flat)), float(new_y(sharp))),
        "inputs": (float(new_x(flat)), float(new_x(sharp))),
    }
    checks = [
        equality_check(
            "rescaling: a shift of targets or inputs raises the loss by the same all along gamma",
            torch.stack((by_y, by_x)),
            torch.stack((by_y[:1], by_x[:1])).expand(-1, len(points)),
        )
    ]
    checks += [
        bound_check(
            f"Fig. 3(a)(b) as printed: a sharper minimum rises more, rescaling, shift of {what}",
            (1 + 1e-6) * at_flat,
            at_sharp,
            expected=False,
        )
        for what, (at_flat, at_sharp) in rises.items()
    ]
    return [
        *checks,
        order_check(
            "scalar network: order of the distance's difference from sqrt(2 rise / sharpness)",
            float(np.polyfit(np.log(changes), np.log(errors), 1)[0]),
            2,
            0.1,
        ),
        equality_check(
            "scalar network: sharpness alone sets how far the new minimum is, sqrt(2 rise / "
            "sharpness), small shifts of targets",
            near,
            math.sqrt(network.size) * small / root,
            tolerance=1e-3,
        ),
        bound_check(
            "Fig. 3(c)(d), scalar network: the more curved point is farther, shifts of targets",
            near[1:],
            near[:-1],
        ),
    ]


def _rigid_shifts(network: ScalarNetwork, facts: dict[str, Any]) -> list[Check]:
    """Of the whole landscape by r in all directions, as the figure draws one."""
    r, c = 0.3, network.product
    ends = [network.minimizer(g) for g in (FLAT, SHARP)]

    def mean(function: Any, w: Tensor) -> float:
        def turned(angle: float) -> float:
            shift = r * torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
            return float(function(w + shift))

        u, v = w.tolist()
        along = math.atan2(-v, u)  # of gamma, near which the distance has its kinks
        parts = [quad(turned, along + a, along + a + math.pi, limit=100, epsabs=1e-9)[0]
                 for a in (0.0, math.pi)]  # fmt: skip
        return float(sum(parts) / (2 * math.pi))

    rises = [mean(network, w) for w in ends]
    away = [mean(lambda p: distance_to_hyperbola(p.numpy(), c), w) / r for w in ends]
    laws = [small_shift([network.curvature(w)], r) for w in ends]
    facts["rigid"] = {"r": r, "mean_rise_flat_sharp": rises, "mean_distance_over_r": away}
    facts["rigid"]["small_shift_law"] = laws
    return [
        equality_check(
            "scalar network: the mean rise over rigid shifts is r^2 sharpness / 4 + S r^4 / 16",
            rises,
            [network.mean_rise(w, r) for w in ends],
        ),
        bound_check(
            "Fig. 3(a)(b): a sharper minimum rises more, rigid shifts in all directions",
            rises[0],
            rises[1],
        ),
        equality_check(
            "scalar network: mean distance / r after rigid shifts is 2/pi - (kappa r)^2 / (12 pi)",
            away,
            laws,
            tolerance=1e-3,
        ),
        bound_check(
            "Fig. 3(c)(d) for all directions: the more curved point is farther, rigid shifts",
            away[1],
            away[0],
            expected=False,
        ),
    ]
