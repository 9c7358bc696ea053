"""phi_1 and phi_2 (eqs. 94, 95): eigenvalues by Lanczos against the whole Hessian."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from metaopt import UserError
from metaopt.measures import Hessian, hessian


def quadratic(values, seed=0):
    """L = w'Aw / 2 of two parameters together, A with these eigenvalues, and its A."""
    n = len(values)
    g = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))[0]
    a = q @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ q.mT

    def loss(parameters):
        w = torch.cat([p.flatten() for p in parameters])
        return 0.5 * w @ a @ w

    return loss, [torch.ones(2, 3).double(), torch.ones(n - 6).double()], a


SMALL = [-3.0, 7.0, 0.5, 2.0, 1.0, 0.1, 4.0, -0.2]
LARGE = [*np.linspace(-1, 1, 290).tolist(), 10.0, 9.0, 8.5, 3.0, 2.0]


@pytest.mark.parametrize("values", [SMALL, LARGE], ids=["dense", "Lanczos"])
def test_the_largest_eigenvalues_of_a_quadratic_are_its_own(values):
    loss, parameters, a = quadratic(values)
    h = Hessian(loss, parameters)
    expected = sorted(values, reverse=True)
    np.testing.assert_allclose(h.largest(5), expected[:5], rtol=1e-6)
    np.testing.assert_allclose(h.dense(), a.numpy(), atol=1e-12)
    v = torch.randn(h.size, dtype=torch.float64)
    torch.testing.assert_close(h.product(v), a @ v)


def test_negative_eigenvalues_are_not_taken_for_large_ones():
    loss, parameters, _ = quadratic([-50.0, *LARGE])
    assert Hessian(loss, parameters).largest(1)[0] == pytest.approx(10.0)


@pytest.mark.parametrize(("threshold", "count"), [(5.0, 3), (2.5, 4), (0.9999, 6), (-2.0, 295)])
def test_phi_1_counts(threshold, count):
    loss, parameters, _ = quadratic(LARGE)
    assert Hessian(loss, parameters).count_above(threshold) == count


def test_phi_1_counts_more_than_it_first_asks_for():
    values = [*np.linspace(5, 6, 40).tolist(), *np.linspace(-1, 0, 300).tolist()]
    loss, parameters, _ = quadratic(values)
    h = Hessian(loss, parameters)
    assert h.count_above(1.0) == 40
    assert h.count_above(1.0, at_most=10) == 10


def test_phi_2_is_the_log_of_the_product():
    loss, parameters, _ = quadratic(LARGE)
    h = Hessian(loss, parameters)
    assert h.log_product(3) == pytest.approx(math.log(10 * 9 * 8.5))
    assert math.isnan(Hessian(*quadratic(SMALL)[:2]).log_product(8))


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(9, 20), nn.Tanh(), nn.BatchNorm1d(20), nn.Linear(20, 4)).double()


@pytest.mark.parametrize("frozen", [False, True])
def test_of_a_network_lanczos_and_the_whole_hessian_agree(frozen):
    model = mlp()
    if frozen:
        model[0].bias.requires_grad_(False)
    x, y = torch.randn(30, 9).double(), torch.arange(30) % 4
    h = hessian(model, nn.CrossEntropyLoss(), x, y)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert h.size == sum(model.get_parameter(name).numel() for name in names) > 200
    model.eval()

    def loss(flat):
        sizes = [model.get_parameter(name).numel() for name in names]
        parts = [
            part.view_as(model.get_parameter(name))
            for part, name in zip(flat.split(sizes), names, strict=True)
        ]
        output = torch.func.functional_call(model, dict(zip(names, parts, strict=True)), (x,))
        return nn.functional.cross_entropy(output, y)

    flat = torch.cat([model.get_parameter(name).detach().flatten() for name in names])
    whole = torch.autograd.functional.hessian(loss, flat).numpy()
    expected = np.linalg.eigvalsh(whole)[::-1]
    np.testing.assert_allclose(h.dense(), whole, atol=1e-12)
    np.testing.assert_allclose(h.largest(6), expected[:6], rtol=1e-5)
    threshold = (expected[7] + expected[8]) / 2
    assert h.count_above(threshold) == 8
    np.testing.assert_array_equal(h.largest(6), h.largest(6))


def test_a_network_in_float32_is_measured_too():
    model = mlp().float()
    x, y = torch.randn(30, 9), torch.arange(30) % 4
    expected = hessian(model.double(), nn.CrossEntropyLoss(), x.double(), y).largest(3)
    found = hessian(model.float(), nn.CrossEntropyLoss(), x, y).largest(3)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_a_linear_loss_has_no_curvature():
    h = Hessian(lambda values: values[0].sum(), [torch.ones(5)])
    np.testing.assert_array_equal(h.largest(2), [0.0, 0.0])


def test_a_large_hessian_of_zeros_has_eigenvalues_of_zero():
    h = Hessian(lambda values: (values[0] * 0).square().sum() + values[0].sum(), [torch.ones(500)])
    np.testing.assert_array_equal(h.largest(3), np.zeros(3))


def test_a_parameter_that_the_loss_does_not_use_is_flat():
    model = mlp()
    model.register_parameter("unused", nn.Parameter(torch.ones(3).double()))
    x, y = torch.randn(30, 9).double(), torch.arange(30) % 4
    h = hessian(model, nn.CrossEntropyLoss(), x, y)
    assert h.size == sum(p.numel() for p in model.parameters())
    assert np.abs(h.dense()[:3]).max() == 0 or np.abs(h.dense()[-3:]).max() == 0


@pytest.mark.parametrize("at_most", [0, -3])
def test_a_limit_below_one_is_refused(at_most):
    with pytest.raises(UserError, match="expected at_most of 1 or more"):
        Hessian(*quadratic(SMALL)[:2]).count_above(1.0, at_most=at_most)


@pytest.mark.parametrize("count", [0, -1, 15])
def test_a_number_of_eigenvalues_that_does_not_exist_is_refused(count):
    loss, parameters, _ = quadratic(SMALL)
    with pytest.raises(UserError, match=f"expected from 1 to 8 eigenvalues.*got {count}"):
        Hessian(loss, parameters).largest(count)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(UserError, match="expected a finite scalar loss"):
        Hessian(lambda values: values[0].sum() / 0, [torch.ones(2)])
    with pytest.raises(UserError, match="expected a finite scalar loss"):
        Hessian(lambda values: values[0].square(), [torch.ones(2)])
    with pytest.raises(UserError, match="expected a threshold that is a number"):
        Hessian(lambda values: values[0].sum(), [torch.ones(2)]).count_above(math.nan)
    model = mlp().requires_grad_(False)
    with pytest.raises(UserError, match="expected a model with parameters that need a gradient"):
        hessian(model, nn.CrossEntropyLoss(), torch.randn(3, 9).double(), torch.arange(3))
