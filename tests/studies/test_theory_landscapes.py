"""The scalar network's closed forms, curves on minima of width 2, and Figures 2 and 3."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from metaopt.errors import UserError
from studies.convergence import landscapes, landscapes_wide
from studies.functions.scalar_network import ScalarNetwork, distance_to_hyperbola

X = torch.tensor([0.5, -1.0, 1.5], dtype=torch.float64)


@pytest.fixture(scope="module")
def outcome():
    return landscapes.study(quick=True)


@pytest.fixture
def network():
    return ScalarNetwork.fitted(X, 1.3)


def named(checks, part):
    found = [check for check in checks if part in check.statement]
    assert found
    return found


def test_the_loss_is_that_of_the_network_and_of_the_product():
    y = torch.tensor([1.0, 0.3, 2.0], dtype=torch.float64)
    network = ScalarNetwork(X, y)
    u, v = 0.7, 1.9
    direct = sum(
        0.5 * (float(b) - v * (u * float(a) if u * a > 0 else 0.1 * u * float(a))) ** 2
        for a, b in zip(X, y, strict=True)
    )
    by_product = network.size / 2 * (u * v - network.product) ** 2 + network.lowest
    at = network(torch.tensor([u, v], dtype=torch.float64)).item()
    assert at == pytest.approx(direct, rel=1e-12)
    assert at == pytest.approx(by_product, rel=1e-12)


@pytest.mark.parametrize("g", [0.4, 1.0, 3.0])
def test_sharpness_is_the_hessians_only_eigenvalue(network, g):
    w = network.minimizer(g)
    hessian = torch.autograd.functional.hessian(lambda p: network(p), w)
    values = torch.linalg.eigvalsh(hessian)
    assert values[1].item() == pytest.approx(network.sharpness(w), rel=1e-12)
    assert abs(values[0].item()) < 1e-12
    assert network(w).item() < 1e-30


@pytest.mark.parametrize("g", [0.4, 1.0, 3.0])
def test_the_curvature_is_that_of_three_points_of_the_minimum(network, g):
    before, here, after = (network.minimizer(g * math.exp(s)) for s in (-1e-3, 0.0, 1e-3))
    sides = [(after - here).norm(), (here - before).norm(), (after - before).norm()]
    a, b = after - here, before - here
    circle = 2 * (a[0] * b[1] - a[1] * b[0]).abs() / (sides[0] * sides[1] * sides[2])
    assert circle.item() == pytest.approx(network.curvature(here), rel=1e-5)


def test_small_steps_of_gradient_descent_end_where_the_flow_does(network):
    start = w = torch.tensor([2.0, 1.1], dtype=torch.float64)
    for _ in range(5_000):
        u, v = w
        slope = network.size * (u * v - network.product)
        w = w - 2e-3 * slope * torch.stack((v, u))
    torch.testing.assert_close(w, network.flow_end(start), rtol=4e-3, atol=0)
    torch.testing.assert_close(
        network.flow_end(network.flow_start(network.minimizer(2.0), 4.0)), network.minimizer(2.0)
    )


@pytest.mark.parametrize("point", [(1.0, 1.0), (3.0, 0.2), (0.1, 0.1), (2.0, 2.0), (-1.0, 0.5)])
def test_the_distance_to_a_hyperbola_is_that_of_a_search(point):
    def distance(s):
        return math.hypot(math.exp(s) - point[0], 1.2 * math.exp(-s) - point[1])

    grid = np.linspace(-4, 4, 4001)
    near = grid[np.argmin([distance(s) for s in grid])]
    best = minimize_scalar(distance, bounds=(near - 0.01, near + 0.01), method="bounded").fun
    assert distance_to_hyperbola(np.array(point), 1.2) == pytest.approx(best, rel=1e-8)


def test_the_mean_rise_is_that_of_random_shifts(network):
    w = network.minimizer(1.5)
    drawn = torch.randn(200_000, 2, generator=torch.Generator().manual_seed(0)).double()
    losses = network(w + 0.4 * drawn / drawn.norm(dim=1, keepdim=True))
    error = 4 * losses.std().item() / math.sqrt(len(losses))
    assert losses.mean().item() == pytest.approx(network.mean_rise(w, 0.4), abs=error)


def test_a_minimum_elsewhere_is_refused():
    with pytest.raises(UserError, match=r"^expected .*, got .*: .*$"):
        ScalarNetwork(X, -X)
    with pytest.raises(UserError, match=r"^expected .*, got .*: .*$"):
        distance_to_hyperbola(np.array([1.0, 1.0]), 0.0)


def test_the_nearest_minimizer_of_a_linear_residual_is_the_projection():
    a = torch.randn(2, 5, generator=torch.Generator().manual_seed(1)).double()
    b, w = torch.ones(2).double(), torch.arange(5).double()
    found = landscapes_wide.nearest_minimizer(lambda p: a @ p - b, lambda p: a, w)
    torch.testing.assert_close(found, w - torch.linalg.pinv(a) @ (a @ w - b))


def test_jacobians_of_the_wide_networks_are_finite_differences():
    found = landscapes_wide.curves(2, 3, seed=1)
    w1, w2, x = found.w1[1, 2], found.w2[1, 2], found.x[1, 2]
    h = 1e-6
    for index in (0, 4):
        moved = w1.clone().flatten()
        moved[index] += h
        column = (
            landscapes_wide.network(moved.reshape(w1.shape), w2, x)
            - landscapes_wide.network(w1, w2, x)
        ).flatten() / h
        torch.testing.assert_close(column, found.by_weights[1, 2, :, index], rtol=1e-4, atol=1e-6)
    moved = x.clone().flatten()
    moved[5] += h
    column = (landscapes_wide.network(w1, w2, moved.reshape(x.shape)) - found.output[1, 2]) / h
    torch.testing.assert_close(column.flatten(), found.by_inputs[1, 2, :, 5], rtol=1e-4, atol=1e-6)


def test_the_study_of_landscapes_comes_out_as_expected(outcome):
    assert outcome.as_expected, outcome.verdict
    assert outcome.study == "landscapes"
    assert outcome.picture.startswith(b"\x89PNG")


def test_sharper_minima_rise_more_under_rigid_shifts_only(outcome):
    assert all(check.holds for check in named(outcome.checks, "rise more, eq. 78, rigid"))
    printed = named(outcome.checks, "as printed")
    assert len(printed) == 4
    assert not any(check.holds for check in printed)


def test_a_wrong_sharpness_is_seen(monkeypatch):
    monkeypatch.setattr(landscapes, "picture", lambda *args: b"")
    monkeypatch.setattr(ScalarNetwork, "sharpness", lambda self, w: self.size * float(w.norm()))
    surprises = [c.statement for c in landscapes.study(quick=True).checks if not c.as_expected]
    for part in ("sharpness is S", "late rate", "mean rise", "sqrt(2 rise"):
        assert any(part in statement for statement in surprises)


def test_a_move_that_is_no_symmetry_is_seen():
    found = landscapes_wide.curves(6, 5, seed=3)
    drift = 1 + 0.01 * found.t[:, None, None]
    broken = found._replace(w2=drift * found.w2)
    surprises = [c.statement for c in landscapes_wide.checks_of(broken, {}) if not c.as_expected]
    assert any("the output stays" in statement for statement in surprises)
    assert any("shift of Y is the same" in statement for statement in surprises)


def test_half_the_jacobian_is_seen():
    found = landscapes_wide.curves(6, 5, seed=3)
    broken = found._replace(by_weights=found.by_weights / 2, by_inputs=found.by_inputs / 2)
    surprises = [c.statement for c in landscapes_wide.checks_of(broken, {}) if not c.as_expected]
    for part in ("is phi", "1/2 ||dF/dX dX||^2", "order of"):
        assert any(part in statement for statement in surprises)
