"""Searches by transported gradients: the same ends as by evaluation, and two evaluations."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from network_cases import ZOO, Case, sample
from teleporting_cases import LOSS, data, mlp, seeded
from test_heads import ORBIT, products, weights
from torch import nn

from metaopt import TeleportingOptimizer
from metaopt.symmetry import (
    ActingSite,
    Action,
    Element,
    GradientAscent,
    LinearAction,
    MetricNorm,
    Negated,
    Orbit,
    RescalingAction,
    Site,
    find_sites,
    gradient_norm,
    make_action,
    module_loss,
    value_and_gradient,
)
from metaopt.symmetry.auto import for_all_data
from metaopt.symmetry.functional import NetworkLoss
from metaopt.symmetry.slope import TransportedSlope
from metaopt.symmetry.transported import follows_by_transport, gradient_blocks, joined
from metaopt.tasks import RegressionFamily

MOVED = [case for case in ZOO if case.found and case.label != "noise"]


def evaluated(parameters, loss):
    """The default objective, which here does not say that it is a form of the gradient."""
    return gradient_norm(parameters, loss)


class Counted:
    """A loss that counts its evaluations."""

    def __init__(self, loss):
        self.loss, self.count = loss, 0

    def __call__(self, values):
        self.count += 1
        return self.loss(values)


def setting(model, x):
    """The orbit of all groups that are exact for all data, what they move, and a loss."""
    target = torch.linspace(-1, 1, model(x).numel(), dtype=torch.float64)
    found = find_sites(model).found
    acting = [own for site in found if (own := for_all_data(site)) is not None]
    names = tuple(dict.fromkeys(name for site, _ in acting for name in site.parameters))
    loss = NetworkLoss(model, names, lambda out, y: (out.flatten() - y).pow(4).sum(), x, target)
    return Orbit(names, acting), [model.get_parameter(name).detach() for name in names], loss


def drawn(elements, size=0.3):
    generator = torch.Generator().manual_seed(4)
    return [
        e.map(lambda v: size * torch.randn(v.shape, generator=generator, dtype=v.dtype))
        for e in elements
    ]


def stack(*layers) -> nn.Module:
    return seeded(lambda: nn.Sequential(*layers).double())


MIXED = {
    "GL behind GL": lambda: stack(nn.Linear(5, 4), nn.Linear(4, 6), nn.Linear(6, 3)),
    "GL before scales": lambda: stack(nn.Linear(5, 4), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)),
    "scales before GL": lambda: stack(
        nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 6), nn.Linear(6, 3, bias=False)
    ),
    "wide": lambda: stack(nn.Linear(9, 3), nn.Linear(3, 8)),
    "convolution before a flattened image": lambda: stack(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3)
    ),
}


def assert_follows(orbit, parameters, loss):
    """What is transported, and what it pulls back, are what the network would give."""
    own = [p.clone().requires_grad_() for p in parameters]
    value = gradient_norm(own, loss)
    second = torch.autograd.grad(value, own, allow_unused=True, materialize_grads=True)
    gradients = value_and_gradient(parameters, loss)[1]
    blocks = gradient_blocks(orbit, gradients)
    slope = TransportedSlope(blocks, 1.0)
    start = slope.at(blocks.start())
    torch.testing.assert_close(start.value, value.detach())
    pulled = blocks.of_sites(slope.directions(start))
    for got, want in zip(pulled, orbit.pull_back(parameters, second), strict=True):
        torch.testing.assert_close(got.values, want.values, rtol=1e-6, atol=1e-8 * value.item())
    elements = drawn(blocks.identity)
    reached, rejected = slope.moved(start, elements)
    moved = orbit.move(parameters, blocks.of_sites(elements)).parameters
    torch.testing.assert_close(reached.value, gradient_norm(moved, loss).detach())
    assert not rejected


@pytest.mark.parametrize("case", MOVED, ids=[case.label for case in MOVED])
def test_gradients_follow_in_every_network_of_the_zoo(case: Case):
    model, x = sample(case)
    orbit, parameters, loss = setting(model, x)
    if orbit.acting:
        assert follows_by_transport(orbit)
        assert_follows(orbit, parameters, loss)


@pytest.mark.parametrize("label", MIXED)
def test_gradients_follow_where_sites_share_a_matrix(label):
    model = MIXED[label]()
    x = torch.randn(4, *((1, 3, 3) if "image" in label else (model[0].in_features,))).double()
    orbit, parameters, loss = setting(model, x)
    assert len(orbit.acting) == (1 if label == "wide" else 2)
    assert_follows(orbit, parameters, loss)


def test_gradients_follow_in_all_heads():
    def loss(parameters):
        return products(list(parameters)).sum(dim=0).square().sum()

    assert_follows(ORBIT, weights(), loss)


@pytest.mark.parametrize("label", ["MLP", *MIXED])
def test_the_end_is_that_of_a_search_that_evaluates(label):
    if label == "MLP":
        model, x = mlp(), data(20).x
    else:
        model = MIXED[label]()
        x = torch.randn(4, *((1, 3, 3) if "image" in label else (model[0].in_features,))).double()
    orbit, parameters, loss = setting(model, x)
    ascent, counted = GradientAscent(max_ratio=2.0), Counted(loss)
    found = ascent(orbit, parameters, counted)
    expected = replace(ascent, objective=evaluated)(orbit, parameters, loss)
    assert counted.count == 2
    assert found.confirmed
    assert not expected.confirmed
    assert found.rejected.shape == expected.rejected.shape == ()
    for got, want in zip(found.parameters, expected.parameters, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)
    assert len(found.elements) == len(expected.elements)
    for step, others in zip(found.elements, expected.elements, strict=True):
        for got, want in zip(step, others, strict=True):
            assert got.diagonal == want.diagonal
            torch.testing.assert_close(got.values, want.values, rtol=1e-8, atol=1e-10)


def test_a_teleport_of_a_network_costs_two_evaluations_whatever_its_steps():
    counts = []
    for iterations in (1, 20):
        model, batch = mlp(), data(20)
        base = torch.optim.SGD(model.parameters(), 0.1)
        optimizer = TeleportingOptimizer(
            base, model, LOSS, search=GradientAscent(iterations, max_ratio=50.0)
        )
        calls = []
        model.register_forward_hook(lambda *_: calls.append(1))  # noqa: B023
        optimizer.teleport(*batch)
        counts.append(len(calls))
    assert counts == [2, 2]


def test_other_forms_of_the_gradient_follow_too():
    orbit, parameters, loss = setting(mlp(), data(20).x)
    generator = torch.Generator().manual_seed(5)
    metric = [torch.rand(p.shape, generator=generator).double() + 0.1 for p in parameters]
    for objective in (MetricNorm(metric), Negated(gradient_norm), Negated(MetricNorm(metric))):
        counted = Counted(loss)
        found = GradientAscent(5, objective=objective)(orbit, parameters, counted)
        hidden = GradientAscent(5, objective=lambda *both, own=objective: own(*both))
        expected = hidden(orbit, parameters, loss)
        assert counted.count == 2
        assert objective(found.parameters, loss) > objective(parameters, loss)
        for got, want in zip(found.parameters, expected.parameters, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


def test_a_metric_does_not_follow_where_gl_acts():
    orbit, parameters, loss = setting(MIXED["wide"](), torch.randn(4, 9).double())
    counted = Counted(loss)
    objective = MetricNorm([torch.ones_like(p) for p in parameters])
    found = GradientAscent(3, objective=objective)(orbit, parameters, counted)
    assert counted.count > 2
    assert not found.confirmed
    assert objective(found.parameters, loss) > objective(parameters, loss)


class Boastful(RescalingAction.__base__):  # the base that rescaling and GL share
    """An action that says of itself that it is exact across any activation."""

    group, exact_when, diagonal = "positive", "always", True

    def max_samples(self, site: Site) -> float:
        return math.inf

    def obstacle(self, site: Site) -> str | None:
        return None


def test_a_search_evaluates_where_what_was_transported_is_not_what_is():
    model, (x, y) = stack(nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 3)), data(20)
    trainable, loss = module_loss(model, LOSS, x, y)
    parameters = [p.detach() for p in trainable]
    orbit = Orbit(loss.names, [ActingSite(site, Boastful()) for site in find_sites(model).found])
    assert follows_by_transport(orbit)
    found = GradientAscent(5)(orbit, parameters, loss)
    expected = GradientAscent(5, objective=evaluated)(orbit, parameters, loss)
    assert not found.confirmed
    for got, want in zip(found.parameters, expected.parameters, strict=True):
        assert torch.equal(got, want)


def test_a_teleport_that_was_not_confirmed_is_still_checked():
    model = stack(nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 3))
    base = torch.optim.SGD(model.parameters(), 0.1)
    optimizer = TeleportingOptimizer(
        base, model, LOSS, Boastful(), search=GradientAscent(initial_step=3.0), max_defect=1e-6
    )
    before = copy.deepcopy(model.state_dict())
    optimizer.teleport(*data(20))
    assert optimizer.undone == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_bound_on_the_invariance_error_below_rounding_is_still_kept():
    model = mlp(torch.float32)
    base = torch.optim.SGD(model.parameters(), 0.1)
    optimizer = TeleportingOptimizer(base, model, LOSS, "rescaling", max_defect=1e-12)
    optimizer.teleport(*data(20, dtype=torch.float32))
    assert optimizer.undone == 1


def test_tasks_are_evaluated_as_before():
    tasks = RegressionFamily().sample([0, 1])
    chain = tasks.chain
    parameters = [p.detach() for p in tasks.parameters()]
    orbit = Orbit(chain.names, [ActingSite(s, RescalingAction()) for s in chain.sites(parameters)])

    def loss(values):
        return chain.output(chain.layers(values), tasks.x).square().sum(dim=(-2, -1))

    found = GradientAscent(3)(orbit, parameters, loss)
    expected = GradientAscent(3, objective=evaluated)(orbit, parameters, loss)
    for got, want in zip(found.parameters, expected.parameters, strict=True):
        assert torch.equal(got, want)


def test_a_gradient_that_is_not_finite_moves_nothing():
    orbit, parameters, loss = setting(mlp(), data(20).x)

    def broken(values):
        return loss(values) * math.nan

    found = GradientAscent(2)(orbit, parameters, broken)
    assert not found.confirmed
    for got, want in zip(found.parameters, parameters, strict=True):
        assert torch.equal(got, want)


def test_steps_along_a_way_are_one_move_and_one_transport():
    model = MIXED["GL before scales"]()
    orbit, parameters, _ = setting(model, torch.randn(4, 5).double())
    steps = [drawn(orbit.identity(parameters), size) for size in (0.3, 0.2, -0.1)]
    expected, gradients = parameters, parameters
    for elements in steps:
        expected = orbit.move(expected, elements).parameters
        gradients = orbit.transport(gradients, elements)
    (whole,) = joined(orbit, steps)
    point = orbit.move(parameters, whole)
    assert not point.rejected
    for got, want in zip(point.parameters, expected, strict=True):
        torch.testing.assert_close(got, want)
    for got, want in zip(orbit.transport(parameters, whole), gradients, strict=True):
        torch.testing.assert_close(got, want)


def test_steps_of_which_one_is_too_long_are_rejected_as_one():
    orbit, parameters, _ = setting(MIXED["wide"](), torch.randn(4, 9).double())
    steps = [drawn(orbit.identity(parameters), size) for size in (0.1, 100.0)]
    point = orbit.move(parameters, joined(orbit, steps)[0])
    assert point.rejected
    assert all(torch.equal(a, b) for a, b in zip(point.parameters, parameters, strict=True))


def test_steps_of_actions_that_are_not_linear_stay_apart():
    chain = RegressionFamily().sample([0]).chain
    action = make_action("pre_activation")
    orbit = Orbit((), [ActingSite(find_sites(MIXED["wide"]()).found[0], action)], chain)
    steps = [[Element(torch.zeros(3, 3))], [Element(torch.zeros(3, 3))]]
    assert joined(orbit, steps) is steps
    assert joined(orbit, steps[:1]) == steps[:1]


def test_actions_that_see_features_or_exponentiate_to_first_order_do_not_follow():
    (site,) = find_sites(MIXED["wide"]()).found
    assert follows_by_transport(Orbit((), [ActingSite(site, LinearAction())]))
    assert not follows_by_transport(Orbit((), [ActingSite(site, LinearAction("first_order"))]))
    assert not follows_by_transport(Orbit((), []))
    assert not Action.linear


def test_a_gradient_of_rank_one_is_small_and_exact():
    """A Gram matrix that has no Cholesky factor without help."""
    model = stack(nn.Linear(30, 6, bias=False), nn.Linear(6, 20, bias=False))
    assert_follows(*setting(model, torch.randn(1, 30).double()))
