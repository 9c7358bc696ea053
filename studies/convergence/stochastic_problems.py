"""The problems of the studies of Theorems 3.1 and 3.2, each with beta, sigma^2, w* and an orbit."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor

from studies.convergence.stochastic import Array, Expected, StochasticProblem
from studies.functions.quadratic import Quadratic, ellipse, random_quadratic
from studies.geometry.rotations import EllipticOrbits, RadialFamily, quadratic_orbits


def _vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def shared_hessian(
    name: str, matrix: Tensor, centers: Tensor, shift: Tensor, how: str = ""
) -> StochasticProblem:
    """Make the problem L(w, i) = 1/2 (w - c_i)^T H (w - c_i), whose noise shifts the minimiser.

    Args:
        name: of the problem.
        matrix: H, ``(n, n)``.
        centers: c_i, ``(k, n)``.
        shift: w_0 - w*, ``(n,)``.
        how: what to say of the start.
    """
    middle = centers.mean(0)
    spread = centers - middle
    lowest = float(0.5 * ((spread @ matrix) * spread).sum(-1).mean())
    quadratic = Quadratic(matrix, middle, lowest)
    orbits = quadratic_orbits(quadratic)
    values, vectors = torch.linalg.eigh(matrix)
    noise = ((spread @ vectors) * values).square().mean(0)  # variances of the gradient
    beta = quadratic.beta

    def expected(eta: float, steps: int, teleport: bool) -> Expected:
        """Compute the expected loss of each step.

        It is (1 - eta lambda)^2 times what is left, and eta^2 lambda noise / 2 anew.
        """
        parts = 0.5 * values * (shift @ vectors).square()
        added = 0.5 * eta**2 * values * noise
        rows = [parts.sum()]
        for _ in range(steps):
            if teleport:  # all of it moves to the steepest direction
                parts = torch.zeros_like(parts).index_fill(0, torch.tensor(len(parts) - 1), 1.0)
                parts = parts * rows[-1]
            parts = (1 - eta * values).square() * parts + added
            rows.append(parts.sum())
        excess = torch.stack(rows)
        return Expected(excess.numpy(), quadratic.largest_squared_gradient(lowest + excess).numpy())

    return StochasticProblem(
        name=name,
        beta=beta,
        sigma2=lowest,
        start=middle + shift,
        lowest=lowest,
        loss=lambda w: 0.5 * (((w - middle) @ matrix) * (w - middle)).sum(-1) + lowest,
        samples=lambda w: (w.unsqueeze(-2) - centers) @ matrix,
        steepest=orbits.steepest,
        how={
            "beta": "the largest eigenvalue of H, which all samples share",
            "sigma2": "L(w*) = mean (c_i - w*)^T H (c_i - w*) / 2, as each sample reaches 0",
            "mu": "the smallest eigenvalue of H",
            "start": how,
        },
        mu=quadratic.mu,
        orbits=orbits,
        expected=expected,
    )


def many_directions(generator: torch.Generator, n: int = 8) -> StochasticProblem:
    """(a) A quadratic in 8 dimensions, condition 100, started in its flattest direction."""
    matrix = random_quadratic(n, 100.0, generator).matrix
    _, vectors = torch.linalg.eigh(matrix)
    centers = 0.05 * torch.randn(8, n, generator=generator, dtype=torch.float64) + 1.0
    return shared_hessian(
        "shared-hessian", matrix, centers, 10 * vectors[:, 0], "along the flattest eigenvector"
    )


def stationary(steps: int, values: tuple[float, ...] = (3.0, 3.0)) -> StochasticProblem:
    """The closest case of eq. 7: started where noise and contraction balance, so that no t is best.

    H is diagonal and the noise is along its steepest axis. Then E[L - L*] stays at
    eta beta sigma^2 / (2 - eta beta), with which eq. 7 is met up to a factor 1 + eta beta / 2.
    """
    matrix = torch.diag(_vector(*sorted(values)))
    axis = torch.zeros(len(values), dtype=torch.float64)
    axis[-1] = 1.0
    beta, pull = max(values), 1 / math.sqrt(steps - 1)  # pull = eta beta
    sigma2 = beta / 2
    level = sigma2 * pull / (2 - pull)
    return shared_hessian(
        "stationary",
        matrix,
        torch.stack([axis, -axis]),
        axis * math.sqrt(2 * level / beta),
        "at the stationary level eta beta sigma^2 / (2 - eta beta)",
    )


def axis_samples(size: float = 0.5) -> StochasticProblem:
    """(b) The ellipse of appendix D as least squares: a sample sees one axis only.

    L(w, i) = 1/2 (a_i . w - b_i)^2 with a_i = sqrt(2) e_1 or 5 sqrt(2) e_2 and b_i = +-size.
    """
    quadratic = ellipse(5.0)
    orbits = quadratic_orbits(quadratic)
    a = math.sqrt(2) * torch.stack([_vector(1, 0), _vector(1, 0), _vector(0, 5), _vector(0, 5)])
    b = size * _vector(1, -1, 1, -1)
    lowest = size**2 / 2

    def samples(w: Tensor) -> Tensor:
        return (w @ a.mT - b).unsqueeze(-1) * a

    return StochasticProblem(
        name="ellipse",
        beta=float(a.square().sum(-1).max()),
        sigma2=lowest,
        start=_vector(3.0, 0.3),
        lowest=lowest,
        loss=lambda w: 0.5 * (w @ a.mT - b).square().mean(-1),
        samples=samples,
        steepest=orbits.steepest,
        how={
            "beta": "the largest |a_i|^2, twice the largest eigenvalue of the mean's Hessian",
            "sigma2": "L(w*) = mean b_i^2 / 2, as each sample reaches 0",
            "mu": "the smallest eigenvalue of the mean's Hessian",
        },
        mu=quadratic.mu,
        orbits=orbits,
    )


def sheared_bowl(bend: float) -> RadialFamily:
    """sqrt(1 + |h(w)|^2) - 1 with h(w) = (w_1, w_2 + bend sin w_1): smooth, not convex."""

    def shear(w: Tensor, sign: float) -> Tensor:
        return torch.stack([w[..., 0], w[..., 1] + sign * bend * w[..., 0].sin()], -1)

    return RadialFamily(
        lambda square: (1 + square).sqrt() - 1, lambda w: shear(w, 1.0), lambda z: shear(z, -1.0)
    )


@functools.cache
def sheared_smoothness(bend: float, noise: float) -> float:
    """beta of L(w) + xi.h(w), |xi| <= noise, for the sheared bowl: the largest |eigenvalue|.

    With u = h / sqrt(1 + |h|^2) the Hessian is J^T M J - bend sin(w_1) (u_2 + xi_2) e_1 e_1^T, with
    J = dh/dw and M = sqrt(1 - |u|^2) (I - u u^T): a function of w_1 modulo 2 pi and of u in the
    unit disc, which is compact. It is maximised there by scipy from a grid of starts.
    """

    def negative(at: Array) -> float:
        x, size, angle, sign = at[0], min(abs(at[1]), 1.0), at[2], math.copysign(noise, at[3])
        u = size * np.array([math.cos(angle), math.sin(angle)])
        j = np.array([[1.0, 0.0], [bend * math.cos(x), 1.0]])
        m = math.sqrt(1 - size**2) * (np.eye(2) - np.outer(u, u))
        h = j.T @ m @ j
        h[0, 0] -= bend * math.sin(x) * (u[1] + sign)
        return -float(np.abs(np.linalg.eigvalsh(h)).max())

    grid = [
        np.array([x, size, angle, sign])
        for x in np.linspace(0, 2 * math.pi, 13)[:-1]
        for size in (0.0, 0.3, 0.6, 0.9)
        for angle in np.linspace(0, 2 * math.pi, 9)[:-1]
        for sign in (1.0, -1.0)
    ]
    starts = sorted(grid, key=negative)[:6]
    return max(
        -float(minimize(negative, s, method="Nelder-Mead", options={"xatol": 1e-9}).fun)
        for s in starts
    )


def bowl(bend: float = 0.8, noise: float = 0.5) -> StochasticProblem:
    """(c) The sheared bowl with samples L(w) + xi_i . h(w), xi_i = +-noise e_1, +-noise e_2."""
    family = sheared_bowl(bend)
    xi = noise * torch.tensor([[1, 0], [-1, 0], [0, 1], [0, -1]], dtype=torch.float64)

    def samples(w: Tensor) -> Tensor:
        z = family.forward(w)
        v = (z / (1 + z.square().sum(-1, keepdim=True)).sqrt()).unsqueeze(-2) + xi
        first = v[..., 0] + bend * w[..., :1].cos() * v[..., 1]  # J^T v
        return torch.stack([first, v[..., 1]], -1)

    return StochasticProblem(
        name="sheared-bowl",
        beta=sheared_smoothness(bend, noise),
        sigma2=1 - math.sqrt(1 - noise**2),
        start=_vector(3.0, 2.0),
        lowest=0.0,
        loss=family,
        samples=samples,
        steepest=family.steepest,
        how={
            "beta": "the largest |eigenvalue| of a sample's Hessian over all w, which reduces to a "
            "compact set (w_1 modulo 2 pi, h / sqrt(1 + |h|^2) in the unit disc): scipy's "
            "Nelder-Mead from the best of a grid",
            "sigma2": "1 - sqrt(1 - |xi|^2), as inf_h sqrt(1 + |h|^2) - 1 + xi.h = "
            "sqrt(1 - |xi|^2) - 1",
        },
    )


def ripple(r: Tensor) -> Tensor:
    """q(r) = r^2 + 3 sin^2 r of Karimi, Nutini and Schmidt: PL, not convex, q'' from -4 to 8."""
    return r.square() + 3 * r.sin().square()


def ripple_slope(r: Tensor) -> Tensor:
    """q'(r) = 2 r + 3 sin 2r."""
    return 2 * r + 3 * (2 * r).sin()


def ripple_constants() -> tuple[float, float]:
    """Compute two constants of the ripple, of the PL inequality (eq. 8) and of eq. 39.

    They are min q'^2 / (2 q) and min q' / r.
    """

    def pl(r: float) -> float:
        return (2 * r + 3 * math.sin(2 * r)) ** 2 / (2 * (r * r + 3 * math.sin(r) ** 2))

    def error(r: float) -> float:
        return (2 * r + 3 * math.sin(2 * r)) / r

    least = [
        float(minimize_scalar(f, bounds=(1.8, 2.7), method="bounded", options={"xatol": 1e-12}).fun)
        for f in (pl, error)
    ]
    return least[0], least[1]


def rippled_ellipse(noise: float = 0.3) -> StochasticProblem:
    """L(w) = q(|A w|) with the ripple q, and samples L(w) + xi_i . w: smooth and PL, not convex."""
    matrix = torch.tensor([[1.0, 0.5], [0.0, 1.5]], dtype=torch.float64)
    orbits = EllipticOrbits(matrix, torch.zeros(2, dtype=torch.float64), ripple_slope)
    xi = noise * torch.tensor([[1, 0], [-1, 0], [0, 1], [0, -1]], dtype=torch.float64)
    pulls = (xi @ orbits.inverse).norm(dim=-1)  # |A^-T xi|
    lowest_samples = [_least_of_ripple(float(p)) for p in pulls]

    def samples(w: Tensor) -> Tensor:
        z = orbits.to_sphere(w)
        r = z.norm(dim=-1, keepdim=True).clamp(min=1e-300)
        mean: Tensor = (ripple_slope(r) / r * z) @ matrix
        return mean.unsqueeze(-2) + xi

    return StochasticProblem(
        name="rippled-ellipse",
        beta=8 * float(orbits.singular[0] ** 2),
        sigma2=-float(np.mean(lowest_samples)),
        start=orbits.from_sphere(_vector(3.0, 0.5)),
        lowest=0.0,
        loss=lambda w: ripple(orbits.radius(w)),
        samples=samples,
        steepest=orbits.steepest,
        how={
            "beta": "8 s_max(A)^2, as |q''| and q'/r are at most 8; noise linear in w adds nothing",
            "sigma2": "-mean_i min_r q(r) - r |A^-T xi_i|, each minimised by scipy",
            "mu": "s_min(A)^2 min q'^2 / (2 q), minimised by scipy",
        },
        mu=ripple_constants()[0] * float(orbits.singular[-1] ** 2),
        orbits=orbits,
    )


def _least_of_ripple(pull: float) -> float:
    """min_r q(r) - pull r; as q >= r^2 it is at r <= pull."""
    r = np.linspace(0, pull, 2001)
    best = float(r[np.argmin(r**2 + 3 * np.sin(r) ** 2 - pull * r)])
    step = pull / 2000

    def value(x: float) -> float:
        return x * x + 3 * math.sin(x) ** 2 - pull * x

    bounds = (max(0.0, best - step), best + step)
    return float(minimize_scalar(value, bounds=bounds, method="bounded").fun)
