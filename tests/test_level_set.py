"""Level-set teleportation against closed forms, brute force and its own promises."""

import copy
import math

import pytest
import torch
from torch import nn

from metaopt import UserError
from metaopt.symmetry.level_set import LevelSetTeleport, Stopped
from metaopt.symmetry.module_level_set import module_loss, teleport_module

EIGENVALUES = torch.tensor([1.0, 2.0, 5.0, 10.0]).double()


def quadratic(values):
    return 0.5 * (EIGENVALUES * values[0].square()).sum(-1)


def wells(values):
    """Two wells joined above f = 1, not convex between them."""
    x, y = values[0][..., 0], values[0][..., 1]
    return (x.square() - 1).square() + 2 * y.square() + 0.5 * x * y


def tanh_network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    return model, torch.randn(30, 5).double(), torch.arange(30) % 3


def norm(model, x, y):
    loss = nn.functional.cross_entropy(model(x), y)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return math.sqrt(sum(g.square().sum().item() for g in gradients))


def keeps_its_promises(climb, search):
    most = climb.losses[0] + search.tolerance * climb.losses[0].abs()
    assert (climb.losses <= most).all()
    assert (climb.gradient_norms.max(dim=0).values >= climb.gradient_norms[0]).all()


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_a_quadratics_largest_gradient_is_along_its_largest_eigenvector(scale):
    """||g||^2 = 2 lambda_max f_0 at w = +-sqrt(2 f_0 / lambda_max) e_max."""
    start = torch.tensor([[1.0, 1.0, 1.0, 0.1], [-3.0, 0.2, 0.5, -0.4]]).double()
    search = LevelSetTeleport()

    def loss(values):
        return scale * quadratic(values)

    climb = search([start], loss)
    keeps_its_promises(climb, search)
    level = loss([start])
    torch.testing.assert_close(
        climb.gradient_norms.max(dim=0).values.square(), 20 * scale * level, rtol=1e-4, atol=0
    )
    expected = torch.zeros_like(start)
    expected[:, 3] = start[:, 3].sign() * (2 * level / (10 * scale)).sqrt()
    torch.testing.assert_close(climb.parameters[0], expected, rtol=1e-4, atol=1e-2)


def test_a_non_convex_function_reaches_the_maximum_found_by_brute_force():
    start = torch.tensor([[0.3, 0.8], [-1.2, 0.7], [1.5, -0.1]]).double()
    search = LevelSetTeleport(iterations=200)
    climb = search([start], wells)
    keeps_its_promises(climb, search)
    axis = torch.linspace(-3, 3, 1201).double()
    grid = torch.cartesian_prod(axis, axis).requires_grad_()
    values = wells([grid])
    (gradient,) = torch.autograd.grad(values.sum(), grid)
    for index, level in enumerate(wells([start])):
        inside = values <= level
        largest = gradient[inside].norm(dim=-1).max().item()
        reached = climb.gradient_norms[:, index].max().item()
        assert reached == pytest.approx(largest, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_tanh_networks_loss_stays_and_its_gradient_rises(dtype):
    model, x, y = tanh_network()
    model, x = model.to(dtype), x.to(dtype)
    loss_fn = nn.CrossEntropyLoss()
    loss, before = loss_fn(model(x), y).item(), norm(model, x, y)
    search = LevelSetTeleport()
    climb = teleport_module(model, loss_fn, x, y, search)
    keeps_its_promises(climb, search)
    assert loss_fn(model(x), y).item() == pytest.approx(loss, rel=2e-4)
    assert norm(model, x, y) > 2 * before
    assert norm(model, x, y) == pytest.approx(climb.gradient_norms.max().item(), rel=1e-4)


def test_one_step_without_corrections_is_the_printed_formula():
    generator = torch.Generator().manual_seed(0)
    hessian = torch.randn(4, 4, generator=generator).double()
    hessian, w = hessian @ hessian.T, torch.randn(4, generator=generator).double()

    def loss(values):
        return 0.5 * values[0] @ hessian @ values[0]

    search = LevelSetTeleport(iterations=1, rho=1e-3, corrections=0, tolerance=1.0)
    g = hessian @ w
    q = hessian @ g / (g @ g)
    v = 1e-3 * (q @ g) / (g @ g)
    torch.testing.assert_close(search([w], loss).parameters[0], w + 1e-3 * q - v * g)

    def concave(values):
        return -loss(values)

    climb = search([w], concave)  # q.g < 0: no correction
    torch.testing.assert_close(climb.parameters[0], w + 1e-3 * q)


def test_it_is_equivariant_under_rotations():
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(2, 2, generator=generator).double()).Q
    start = torch.tensor([0.3, 0.8]).double()
    search = LevelSetTeleport(iterations=8)
    plain = search([start], wells)
    turned = search([rotation @ start], lambda values: wells([rotation.T @ values[0]]))
    torch.testing.assert_close(turned.parameters[0], rotation @ plain.parameters[0])
    torch.testing.assert_close(turned.gradient_norms, plain.gradient_norms)


def test_how_the_weights_are_cut_into_tensors_does_not_matter():
    start = torch.tensor([0.3, 0.8]).double()
    whole = LevelSetTeleport(iterations=8)([start], wells)
    parts = LevelSetTeleport(iterations=8)(
        [start[0].clone(), start[1:]], lambda v: wells([torch.cat([v[0].reshape(1), v[1]])])
    )
    together = torch.cat([p.reshape(-1) for p in parts.parameters])
    torch.testing.assert_close(together, whole.parameters[0])


def test_a_problem_does_not_depend_on_its_batch_even_where_another_is_broken():
    start = torch.tensor([[0.3, 0.8], [math.nan, 1.0], [1.0, 0.0], [1.5, -0.1]]).double()
    search = LevelSetTeleport(iterations=12)
    together = search([start], wells)
    assert together.stopped[1] == Stopped.NOT_FINITE
    for index in (0, 2, 3):
        alone = search([start[index]], wells)
        torch.testing.assert_close(together.parameters[0][index], alone.parameters[0])
        assert together.stopped[index] == alone.stopped


def test_it_stops_where_there_is_nothing_to_climb():
    search = LevelSetTeleport(iterations=5)
    for start in ([0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0]):  # the minimum, and the maximiser
        climb = search([torch.tensor(start).double()], quadratic)
        assert climb.stopped == Stopped.STATIONARY
        assert climb.parameters[0].tolist() == start
        assert len(climb.losses) == 1
    linear = search([torch.ones(3).double()], lambda values: values[0].sum())
    assert linear.stopped == Stopped.STATIONARY


def test_from_below_the_level_it_returns_to_it():
    """Of -1/2 w^2 the gradient grows as the loss falls, without end: no correction is made."""
    climb = LevelSetTeleport(iterations=5)([torch.ones(3).double()], lambda v: -v[0].square().sum())
    assert (climb.losses.diff() < 0).all()
    assert (climb.gradient_norms.diff() > 0).all()
    assert climb.stopped == Stopped.ITERATIONS


def test_steps_that_are_not_finite_are_refused_and_counted():
    """The gradient grows towards a barrier, and a first step of this size passes it."""

    def loss(values):
        x, y = values[0].unbind(-1)
        return 4.5 * y.square() - (1 - x).log()

    search = LevelSetTeleport(iterations=20, rho=1e3)
    climb = search([torch.tensor([[0.9, 0.3], [0.5, 0.7]]).double()], loss)
    keeps_its_promises(climb, search)
    refused = climb.not_finite.tolist()
    assert refused[0] > 0
    assert refused[1] == 0, "it goes the other way"
    assert climb.losses.isfinite().all()
    assert (climb.gradient_norms[-1] > 1.4 * climb.gradient_norms[0]).all()


def test_where_no_size_fits_it_stays_and_says_so():
    start = torch.tensor([1.0, 1.0, 1.0, 0.1]).double()
    climb = LevelSetTeleport(rho=1e6, halvings=0)([start], quadratic)
    assert climb.stopped == Stopped.NO_STEP
    assert torch.equal(climb.parameters[0], start)


def test_the_module_is_left_alone_by_its_loss_and_only_free_parameters_move():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 3)
    ).double()
    model[0].bias.requires_grad_(False)
    x, y = torch.randn(20, 5).double(), torch.arange(20) % 3
    before = copy.deepcopy(model.state_dict())
    parameters, loss = module_loss(model, nn.CrossEntropyLoss(), x, y)
    assert len(parameters) == 5
    state = torch.get_rng_state()
    assert loss(parameters) == loss(parameters)
    assert torch.equal(torch.get_rng_state(), state)
    climb = LevelSetTeleport(iterations=3)(parameters, loss)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in parameters)
    assert not any(p.requires_grad for p in climb.parameters)
    with torch.no_grad():
        quiet = LevelSetTeleport(iterations=3)(parameters, loss)
    assert torch.equal(quiet.losses, climb.losses)
    teleport_module(model, nn.CrossEntropyLoss(), x, y, LevelSetTeleport(iterations=3))
    for parameter, value in zip(parameters, climb.parameters, strict=True):
        assert torch.equal(parameter, value)
    assert torch.equal(model[0].bias, before["0.bias"])


@pytest.mark.parametrize(
    "options",
    [
        {"iterations": 0}, {"halvings": -1}, {"corrections": -1}, {"rho": 0.0},
        {"rho": math.nan}, {"tolerance": 0.0}, {"growth": 0.5}, {"stationary": 1.0},
    ],
)  # fmt: skip
def test_bad_options_are_refused_in_one_line(options):
    with pytest.raises(UserError, match=r"^expected .*, got .*: the defaults are .*$"):
        LevelSetTeleport(**options)
