"""The part of Newton's direction orthogonal to the gradient, and the steepest such direction.

Appendix B. With g = grad L, H the Hessian, positive definite, and P = I - g g^T / ||g||^2:

    v_perp = -P H^-1 g   (eq. 43),   while ||g||^2 grows fastest along   u = P H g

among the directions orthogonal to g, at the rate 2 ||u||. They are parallel for n = 2 only, or
where g lies in the span of two eigenvectors. With B = P H^-1 P, v_perp is a multiple of B u, for

    H^-1 u = g - (g^T H g / ||g||^2) H^-1 g,   so   P H^-1 u = (g^T H g / ||g||^2) v_perp.

B is positive definite on the complement of g and its condition number is at most that of H. So
v_perp . u > 0 unless u = 0 (Prop. B.2), and by Kantorovich's inequality the cosine between the two,
which is also the ratio of the rates at which ||g||^2 grows along them, is at least

    2 sqrt(kappa) / (1 + kappa),   kappa = lambda_max(H) / lambda_min(H),

which is what is left of Prop. B.3; no larger bound in kappa holds.

All functions take batches: H ``(*, n, n)``, g ``(*, n)``, float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metaopt.errors import UserError


def orthogonal_part(vector: Tensor, g: Tensor) -> Tensor:
    """P v, ``(*, n)``; projected twice, so that it is orthogonal to g in float64 too."""
    for _ in range(2):
        share = (vector * g).sum(-1, keepdim=True) / g.square().sum(-1, keepdim=True)
        vector = vector - share * g
    return vector


def newton_orthogonal(h: Tensor, g: Tensor, inverse: Tensor | None = None) -> Tensor:
    """Compute v_perp = -P H^-1 g (eq. 43), ``(*, n)``.

    Args:
        h: H, ``(*, n, n)``.
        g: ``(*, n)``.
        inverse: what to take for H^-1, ``(*, n, n)``, such as a pseudo-inverse.
    """
    if inverse is None:
        return -orthogonal_part(torch.linalg.solve(h, g[..., None])[..., 0], g)
    return -orthogonal_part((inverse @ g[..., None])[..., 0], g)


def steepest_orthogonal(h: Tensor, g: Tensor) -> Tensor:
    """u = P H g, ``(*, n)``: eq. 58 with a factor of 1 for its 2, not normalised."""
    return orthogonal_part((h @ g[..., None])[..., 0], g)


def printed_steepest(h: Tensor, g: Tensor) -> Tensor:
    """Eq. 58 as printed, H g - 2 (g^T H g / ||g||^2) g, which is not orthogonal to g."""
    product = (h @ g[..., None])[..., 0]
    share = (product * g).sum(-1, keepdim=True) / g.square().sum(-1, keepdim=True)
    return product - 2 * share * g


def growth(h: Tensor, g: Tensor, direction: Tensor) -> Tensor:
    """d||g||^2 per length along a direction, 2 g^T H v / ||v||, ``(*,)``."""
    product = (h @ g[..., None])[..., 0]
    rate: Tensor = 2 * (product * direction).sum(-1) / direction.norm(dim=-1)
    return rate


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Between vectors ``(*, n)``, ``(*,)``."""
    value: Tensor = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
    return value


def kantorovich_cosine(condition: Tensor | float) -> Tensor:
    """2 sqrt(kappa) / (1 + kappa), the least cosine between v_perp and u.

    Raises:
        UserError: for a condition number below 1.
    """
    kappa = torch.as_tensor(condition, dtype=torch.float64)
    if not bool((kappa >= 1 - 1e-12).all()):
        raise UserError(
            f"expected condition numbers of 1 or more, got {float(kappa.min())}: take those of "
            f"positive definite matrices"
        )
    return 2 * kappa.sqrt() / (1 + kappa)


def widest_case(condition: float, share: float) -> tuple[Tensor, Tensor]:
    """H ``(3, 3)`` and g ``(3,)`` whose cosine falls to the bound as share -> 0.

    H = diag(1, sqrt(kappa), kappa), and g has the part ``share`` of its square along each of the
    outer eigenvectors.
    """
    h = torch.diag(torch.tensor([1.0, condition**0.5, condition], dtype=torch.float64))
    g = torch.tensor([share, 1 - 2 * share, share], dtype=torch.float64).sqrt()
    return h, g


def power_forms(a: Tensor, w: Tensor, most: int) -> dict[int, Tensor]:
    """w^T A^k w, ``(*,)``, by k from -2 most to 2 most, for an invertible symmetric A."""
    vectors = {0: w}
    for k in range(1, most + 1):
        vectors[k] = (a @ vectors[k - 1][..., None])[..., 0]
        vectors[-k] = torch.linalg.solve(a, vectors[1 - k][..., None])[..., 0]
    halves = {k: (k // 2, k - k // 2) for k in range(-2 * most, 2 * most + 1)}
    return {k: (vectors[i] * vectors[j]).sum(-1) for k, (i, j) in halves.items()}


def random_positive_definite(
    n: int, condition: float, draws: int, generator: torch.Generator
) -> Tensor:
    """``(draws, n, n)``: turned at random, eigenvalues 1, kappa, and between them log-uniform.

    Raises:
        UserError: for n < 2 or a condition number below 1.
    """
    if n < 2 or not condition >= 1:
        raise UserError(
            f"expected n of 2 or more and a condition number of 1 or more, got {n} and {condition}"
        )
    exponents = torch.rand(draws, n, generator=generator, dtype=torch.float64)
    exponents[:, 0], exponents[:, 1] = 0.0, 1.0
    q, _ = torch.linalg.qr(torch.randn(draws, n, n, generator=generator, dtype=torch.float64))
    h = (q * (condition**exponents)[:, None, :]) @ q.mT
    symmetric: Tensor = (h + h.mT) / 2
    return symmetric
