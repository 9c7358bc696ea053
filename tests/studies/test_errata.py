"""Formulas that are wrong as printed, outside of the studies of the theory (docs/errata.md)."""

import pytest
import torch
from torch import nn

from metaopt.measures import sharpness
from metaopt.symmetry import (
    Identity,
    LayerChain,
    LayerInput,
    LeakyReLU,
    MetricNorm,
    chain_orbit,
    make_action,
)


def test_eq_81_lacks_a_sum_of_squares_in_the_middle():
    """d(gamma' . gamma'')/dt on gamma = (t^2, t^3) at t = 1."""
    first, second, third = ([2.0, 3.0], [2.0, 6.0], [0.0, 6.0])
    dots = [sum(a * b for a, b in zip(x, y, strict=True)) for x, y in
            ((second, second), (first, third))]  # fmt: skip

    def product(t):
        return 2 * t * 2 + 3 * t**2 * 6 * t

    slope = (product(1 + 1e-6) - product(1 - 1e-6)) / 2e-6
    assert slope == pytest.approx(dots[0] + dots[1], rel=1e-6)  # the right-hand side
    assert dots[1] != pytest.approx(slope, rel=0.1)  # the middle: gamma_i' gamma_i''' alone


def test_eq_99_is_of_the_square_of_the_norm():
    g = [torch.tensor([3.0, 4.0], dtype=torch.float64)]

    def loss(values):
        return (g[0] * values[0]).sum()

    norm = MetricNorm([torch.ones(2, dtype=torch.float64)])
    at = [torch.zeros(2, dtype=torch.float64)]
    h, rate = 1e-6, 1.0
    slope = (loss([at[0] - h * rate * g[0]]) - loss(at)) / h
    assert slope.item() == pytest.approx(-25)
    assert norm(at, loss).item() == pytest.approx(25)  # g^T A g
    assert norm(at, loss).sqrt().item() == pytest.approx(5)  # as printed, ||g||_A


def test_eq_13_is_the_loss_around_the_weights_and_not_its_change():
    model = nn.Sequential(nn.Linear(3, 2), nn.LeakyReLU(0.1), nn.Linear(2, 2)).double()
    x, y = torch.randn(5, 3).double(), torch.arange(5) % 2
    loss = nn.functional.cross_entropy
    phi = sharpness(model, loss, x, y, torch.Generator().manual_seed(0), (1e-9,), 10)
    assert phi == pytest.approx(loss(model(x), y).item(), rel=1e-6)
    assert phi > 0.1


@pytest.mark.parametrize("bare", [True, False], ids=["printed", "as a change"])
def test_the_bare_pseudo_inverse_of_eq_78_moves_the_weights_at_the_identity(bare):
    g = torch.Generator().manual_seed(0)
    w1 = torch.randn(16, 784, generator=g, dtype=torch.float64)
    w2 = torch.randn(10, 16, generator=g, dtype=torch.float64)
    h = torch.randn(784, 20, generator=g, dtype=torch.float64)
    sigma = LeakyReLU(0.1)
    if bare:
        moved = sigma.inverse(sigma(w1 @ h)) @ torch.linalg.pinv(h)
    else:
        chain = LayerChain((sigma, Identity()), (False, False))
        orbit = chain_orbit(chain, [w1, w2], LayerInput(h), make_action("post_activation"))
        moved = orbit.move([w1, w2], orbit.identity([w1, w2])).parameters[0]
    change = ((moved - w1).norm() / w1.norm()).item()
    assert change > 0.98 if bare else change == 0
