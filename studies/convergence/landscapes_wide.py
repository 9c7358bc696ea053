"""Curves of eq. 78 on the minimum of a network of width 2, for the study landscapes.

W2 sigma(W1 X) with 3 inputs, 2 hidden units, 1 output and 3 samples: 8 weights, 3 residuals, a
minimum of dimension 5. All networks and all points of their curves are one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor
from torch.func import jacrev, vmap

from metaopt.measures import Sharpness
from metaopt.measures.curvature import mean_curvature
from metaopt.symmetry import (
    Identity,
    LayerChain,
    LayerInput,
    LeakyReLU,
    chain_orbit,
    make_action,
)
from studies.convergence.outcome import (
    Check,
    bound_check,
    equality_check,
    order_check,
)

Array = NDArray[np.float64]
INPUTS, HIDDEN, OUTPUT, SAMPLES = 3, 2, 1, 3
CHAIN = LayerChain((LeakyReLU(0.1), Identity()), (False, False))
EPSILON = 1e-6
"""Of the shifts of the data: small, so that no unit of LeakyReLU changes sign."""


class Curves(NamedTuple):
    """B networks, T points on the curve of each; all ``(B, T, ...)``, float64."""

    t: Tensor  # (T,)
    w1: Tensor
    w2: Tensor
    x: Tensor
    output: Tensor  # before any move, (B, T, OUTPUT, SAMPLES)
    by_weights: Tensor  # J = dF/dw, (B, T, residuals, weights)
    by_inputs: Tensor  # dF/dX, (B, T, residuals, INPUTS * SAMPLES)
    kappa: Tensor  # (B, T)

    @property
    def trace(self) -> Tensor:
        """The trace of the Hessian J^T J, ``(B, T)``."""
        return self.by_weights.square().sum((-2, -1))

    @property
    def input_rise(self) -> Tensor:
        """||dF/dX||^2: twice the mean rise of the loss over shifts of X by normal noise."""
        return self.by_inputs.square().sum((-2, -1))

    @property
    def distance(self) -> Tensor:
        """The root of E ||J^+ delta||^2 over normal delta: how far the new minimum is."""
        singular: Tensor = torch.linalg.svdvals(self.by_weights)
        return singular.square().reciprocal().sum(-1).sqrt()


def network(w1: Tensor, w2: Tensor, x: Tensor) -> Tensor:
    """Compute F = W2 sigma(W1 X)."""
    return w2 @ CHAIN.activations[0](w1 @ x)


def curves(networks: int, points: int, seed: int) -> Curves:
    """exp(t M) . w for -1 <= t <= 1 with random networks, data and M of norm 1."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        values = torch.randn(networks, 1, *shape, generator=generator, dtype=torch.float64)
        return values.expand(-1, points, *shape)

    x, w1, w2 = drawn(INPUTS, SAMPLES), drawn(HIDDEN, INPUTS), drawn(OUTPUT, HIDDEN)
    m = drawn(HIDDEN, HIDDEN)
    m = m / torch.linalg.matrix_norm(m)[..., None, None]
    t = torch.linspace(-1, 1, points, dtype=torch.float64)
    orbit = chain_orbit(CHAIN, [w1, w2], LayerInput(x), make_action("post_activation"))
    moved = orbit.move([w1, w2], orbit.elements([w1, w2], [t[:, None, None] * m]))
    a, b = moved.parameters
    kappa = mean_curvature(orbit, [a, b], [[m]])

    def flat(one: Tensor, two: Tensor, data: Tensor) -> Tensor:
        return network(one, two, data).flatten()

    each = vmap(vmap(jacrev(flat, (0, 1, 2))))(a, b, x)
    one, two, data = (jacobian.flatten(3) for jacobian in each)
    return Curves(t, a, b, x, network(w1, w2, x), torch.cat((one, two), -1), data, kappa)


def ends(values: Tensor, of: Tensor) -> tuple[Array, Array]:
    """``values`` where ``of`` is largest, and smallest, on each curve; ``(B,)`` each."""
    picked = [
        values.gather(1, index[:, None])[:, 0].numpy() for index in (of.argmax(1), of.argmin(1))
    ]
    return picked[0], picked[1]


def nearest_minimizer(
    residual: Callable[[Tensor], Tensor], jacobian: Callable[[Tensor], Tensor], w: Tensor
) -> Tensor:
    """The point nearest to w ``(d,)`` where the residual is 0, from close by.

    w' <- w + J'^+ (J' (w' - w) - r'), a fixed point of which has w' - w in the range of J'^T.
    """
    at = w
    for _ in range(30):
        j = jacobian(at)
        step = torch.linalg.pinv(j) @ (j @ (at - w) - residual(at))
        at = w + step
    return at


def _distances(found: Curves, scales: Sequence[float]) -> tuple[Array, Array]:
    """To the minimum after the targets moved by s delta, and s, with ||J^+ delta|| = 1."""
    split = HIDDEN * INPUTS
    generator = torch.Generator().manual_seed(5)
    delta = torch.randn(OUTPUT * SAMPLES, generator=generator, dtype=torch.float64)
    middle = len(found.t) // 2
    x, start = found.x[0, middle], found.output[0, middle].flatten()
    w = torch.cat((found.w1[0, middle].flatten(), found.w2[0, middle].flatten()))

    def flat(at: Tensor) -> Tensor:
        pair = at[:split].reshape(HIDDEN, INPUTS), at[split:].reshape(OUTPUT, HIDDEN)
        return network(*pair, x).flatten()

    delta = delta / (torch.linalg.pinv(found.by_weights[0, middle]) @ delta).norm()
    exact = [
        float((nearest_minimizer(lambda at, s=s: flat(at) - start - s * delta,  # type: ignore[misc]
                                 jacrev(flat), w) - w).norm())
        for s in scales
    ]  # fmt: skip
    return np.array(exact), np.array(scales)


def checks_of(found: Curves, facts: dict[str, Any]) -> list[Check]:
    """Loss along the curves; rises and distances at sharp, flat, more and less curved points."""
    output = network(found.w1, found.w2, found.x)
    generator = torch.Generator().manual_seed(6)
    noise = EPSILON * torch.randn(found.x.shape[2:], generator=generator, dtype=torch.float64)
    shifted = network(found.w1, found.w2, found.x + noise) - found.output
    linear = (found.by_inputs @ noise.flatten()).square().sum(-1) / 2
    target = torch.randn(found.output.shape[2:], generator=generator, dtype=torch.float64)
    by_target = (output - found.output - target).square().sum((-2, -1)) / 2
    target_sharp, target_flat = ends(by_target, found.trace)
    sharp, flat = ends(found.input_rise, found.trace)
    curved, straight = ends(found.distance, found.kappa)
    of_first = torch.linalg.matrix_norm(found.w1, ord=2).square()
    weights = HIDDEN * INPUTS
    first_trace = found.by_weights[..., :weights].square().sum((-2, -1))
    shortest = found.x.square().sum(-2).amin(-1)
    scales = (0.02, 0.01, 0.005, 0.0025)
    exact, first = _distances(found, scales)
    rigid, trace = _rigid(found)
    rigid_sharp, rigid_flat = ends(rigid, found.trace)
    ranks = [
        [float(spearmanr(one, other).statistic) for one, other in zip(a, b, strict=True)]
        for a, b in (
            (found.trace.numpy(), found.input_rise.numpy()),
            (found.kappa.numpy(), found.distance.numpy()),
        )
    ]
    facts["width_2"] = {
        "networks": len(found.w1),
        "rise_at_sharpest_over_flattest": (sharp / flat).tolist(),
        "share_where_the_sharpest_rises_more": float((sharp > flat).mean()),
        "distance_at_most_over_least_curved": (curved / straight).tolist(),
        "share_where_the_most_curved_is_farther": float((curved > straight).mean()),
        "median_rank_correlation_sharpness_rise": float(np.median(ranks[0])),
        "median_rank_correlation_curvature_distance": float(np.median(ranks[1])),
        "distance_to_new_minimum": exact.tolist(),
        "first_order": first.tolist(),
    }
    return [
        equality_check("eq. 78: the output stays along gamma", output, found.output),
        equality_check(
            "eq. 78: the rise under a shift of X is 1/2 ||dF/dX dX||^2",
            shifted.square().sum((-2, -1)) / 2,
            linear,
            tolerance=1e-7,
        ),
        equality_check(
            "eq. 78: the rise under a shift of Y is the same all along gamma",
            by_target,
            by_target[:, :1].expand_as(by_target),
        ),
        bound_check(
            "Fig. 3(a)(b) as printed: sharper minima rise more, eq. 78, shift of Y",
            (1 + 1e-6) * target_flat,
            target_sharp,
            expected=False,
        ),
        bound_check(
            "Fig. 3(a)(b) as printed: sharper minima rise more, eq. 78, shifts of X",
            flat,
            sharp,
            expected=False,
        ),
        bound_check(
            "eq. 78: ||dF/dX||^2 <= ||W1||^2 (Hessian's trace in W1) / min ||x_i||^2",
            found.input_rise,
            of_first * first_trace / shortest,
        ),
        equality_check(
            "Fig. 3(a)(b): the mean rise over rigid shifts of length r is phi, r^2 tr H / (2 d)",
            rigid,
            trace,
            tolerance=1e-6,
        ),
        bound_check(
            "Fig. 3(a)(b): sharper minima rise more, eq. 78, rigid shifts in all directions",
            rigid_flat,
            rigid_sharp,
        ),
        order_check(
            "eq. 78: order of | distance to the new minimum - ||J^+ delta|| | in the shift of Y",
            float(np.polyfit(np.log(scales), np.log(np.abs(exact - first)), 1)[0]),
            2,
            0.1,
        ),
        bound_check(
            "Fig. 3(c)(d) for all minima: the more curved point is farther, eq. 78, shifts of Y",
            straight,
            curved,
            expected=False,
        ),
    ]


def _rigid(found: Curves) -> tuple[Tensor, Tensor]:
    """phi by metaopt.measures over +-r e_i, and r^2 tr H / (2 d), ``(B, T)`` each."""
    r, d = EPSILON, HIDDEN * INPUTS + OUTPUT * HIDDEN
    split = HIDDEN * INPUTS
    basis = torch.eye(d, dtype=torch.float64)
    directions = [
        basis[:, :split].reshape(d, HIDDEN, INPUTS),
        basis[:, split:].reshape(d, OUTPUT, HIDDEN),
    ]
    phi = Sharpness(torch.tensor([r, -r], dtype=torch.float64), directions)

    def loss(parameters: Sequence[Tensor]) -> Tensor:
        residual = network(parameters[0], parameters[1], found.x) - found.output
        return residual.square().sum((-2, -1)) / 2

    return phi([found.w1, found.w2], loss), r**2 * found.trace / (2 * d)
