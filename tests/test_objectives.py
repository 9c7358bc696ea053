"""Objectives against naive loops and finite differences, the metrics by hand, and the bounds."""

import math
from dataclasses import replace

import pytest
import torch
from cases import LINEAR, mixed_signs
from torch import nn

from metaopt import TeleportingOptimizer, UserError
from metaopt.symmetry import (
    ACTIONS,
    GradientAscent,
    Identity,
    LayerInput,
    MetricNorm,
    Negated,
    chain_orbit,
    gradient_norm,
    make_action,
)
from metaopt.symmetry.functional import NetworkLoss
from metaopt.symmetry.metric import adaptive_metric

FAMILY = mixed_signs(4, 6, 5, 3)
SEEDS = (0, 1, 2)
EPS = 1e-2
ADAPTIVE = {
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.1, eps=EPS, initial_accumulator_value=0.3),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.1, eps=EPS),
    "centered": lambda p: torch.optim.RMSprop(p, 0.1, eps=EPS, centered=True),
    "adam": lambda p: torch.optim.Adam(p, 0.1, betas=(0.0, 0.9), eps=EPS),
    "adamw": lambda p: torch.optim.AdamW(p, 0.1, betas=(0.0, 0.9), eps=EPS, weight_decay=0),
    "amsgrad": lambda p: torch.optim.Adam(p, 0.1, betas=(0.0, 0.9), eps=EPS, amsgrad=True),
}


def setting(seeds=SEEDS, action=""):
    """Chain, parameters, input and loss of tasks, written here without their forward.

    The chain has no activations for the action that needs that nothing lies between two layers.
    """
    tasks = FAMILY.sample(seeds)
    chain, x, y = tasks.chain, tasks.x, tasks.y
    if action == LINEAR:
        chain = replace(chain, activations=(Identity(),) * len(chain.biased))

    def loss(values):
        return 0.5 * (y - chain.output(chain.layers(values), x)).square().sum(dim=(-2, -1))

    return chain, [p.detach() for p in tasks.parameters()], LayerInput(x), loss


def some_metric(parameters):
    generator = torch.Generator().manual_seed(5)
    return [torch.rand(p.shape, generator=generator).to(p) + 0.1 for p in parameters]


def differences(function, parameters, epsilon):
    """d function / d entry by central differences, one entry of all tasks at a time."""
    gradients = []
    for index, parameter in enumerate(parameters):
        gradient = torch.zeros_like(parameter)
        for entry in range(parameter[0].numel()):
            values = []
            for step in (epsilon, -epsilon):
                moved = [p.clone() for p in parameters]
                moved[index].flatten(1)[:, entry] += step
                values.append(function(moved))
            gradient.flatten(1)[:, entry] = (values[0] - values[1]) / (2 * epsilon)
        gradients.append(gradient)
    return gradients


def naive_value(metric, parameters, loss):
    total = torch.zeros(len(parameters[0]), dtype=torch.float64)
    gradients = differences(loss, parameters, 1e-5)
    for task in range(len(total)):
        for a, g in zip(metric, gradients, strict=True):
            for row in range(g.shape[1]):
                for column in range(g.shape[2]):
                    total[task] += a[task, row, column] * g[task, row, column] ** 2
    return total


def climbed(ascent, name, seeds=SEEDS, **options):
    chain, parameters, layer_input, loss = setting(seeds, name)
    orbit = chain_orbit(chain, parameters, layer_input, make_action(name, **options))
    return ascent(orbit, parameters, loss), parameters, loss


def test_objectives_equal_a_naive_loop_over_finite_differences():
    _, parameters, _, loss = setting()
    metric, ones = some_metric(parameters), [torch.ones_like(p) for p in parameters]
    for objective, a in ((MetricNorm(metric), metric), (gradient_norm, ones)):
        value = objective(parameters, loss)
        torch.testing.assert_close(value, naive_value(a, parameters, loss), rtol=1e-7, atol=0)
        assert torch.equal(Negated(objective)(parameters, loss), -value)


def test_objectives_are_differentiable_in_the_parameters():
    _, parameters, _, loss = setting()
    metric = MetricNorm(some_metric(parameters))
    for objective in (gradient_norm, metric, Negated(metric)):
        own = [p.clone().requires_grad_() for p in parameters]
        gradients = torch.autograd.grad(objective(own, loss).sum(), own)

        def value(at, objective=objective):
            return objective(at, loss).detach()

        for got, want in zip(gradients, differences(value, parameters, 1e-6), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_a_task_does_not_depend_on_its_batch():
    _, parameters, _, loss = setting()
    metric = some_metric(parameters)
    together = MetricNorm(metric)(parameters, loss)
    for index, seed in enumerate(SEEDS):
        _, alone, _, own_loss = setting([seed])
        value = MetricNorm([a[index : index + 1] for a in metric])(alone, own_loss)
        torch.testing.assert_close(value[0], together[index], rtol=1e-12, atol=0)


def test_a_unit_metric_gives_the_gradient_norm_and_two_batch_dimensions_work():
    def loss(values):
        return (values[0].square() * values[1]).sum(-1)

    parameters = [torch.rand(2, 3, 5).double(), torch.rand(2, 3, 5).double()]
    value = MetricNorm([torch.ones_like(p) for p in parameters])(parameters, loss)
    expected = (2 * parameters[0] * parameters[1]).square().sum(-1) + parameters[0].pow(4).sum(-1)
    torch.testing.assert_close(value, expected)
    assert value.shape == (2, 3)
    assert torch.equal(value, gradient_norm(parameters, loss))


def test_adagrads_metric_by_hand_after_three_steps():
    """Gradients 1, 2, 2 and 0, 3, 4: sums 9 and 25, roots 3 and 5; two more, 16 and 0: 5 and 5."""
    weight = nn.Parameter(torch.zeros(1, 2, dtype=torch.float64))
    base = torch.optim.Adagrad([weight], lr=0.1, eps=1.0)
    for gradient in ([1.0, 0.0], [2.0, 3.0], [2.0, 4.0]):
        weight.grad = torch.tensor([gradient]).double()
        base.step()

    def loss(values):
        return (values[0] * torch.tensor([[8.0, 12.0]])).sum()

    frozen = MetricNorm.of(base, [weight])
    assert frozen.metric[0].tolist() == [[1 / 4, 1 / 6]]
    assert frozen([weight], loss).item() == pytest.approx(64 / 4 + 144 / 6)
    coming = MetricNorm.of(base, [weight], [torch.tensor([[4.0, 0.0]]).double()])
    assert coming([weight], loss).item() == pytest.approx(64 / 6 + 144 / 6)
    base.step()
    assert frozen.metric[0].tolist() == [[1 / 4, 1 / 6]], "it stays as it is"


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_step_is_the_learning_rate_times_the_metric_times_the_gradient(name):
    """So it is without momentum: the metric with the step's gradient, the one that it then has."""
    weights = [nn.Parameter(torch.randn(3, 2).double()), nn.Parameter(torch.randn(4).double())]
    base = ADAPTIVE[name](weights)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        coming = [torch.randn(w.shape, generator=generator).double() for w in weights]
        before = [w.detach().clone() for w in weights]
        metric = adaptive_metric(base, weights, coming) if base.state[weights[0]] else None
        for weight, gradient in zip(weights, coming, strict=True):
            weight.grad = gradient
        base.step()
        expected = adaptive_metric(base, weights)
        for i, weight in enumerate(weights):
            step = -0.1 * expected[i] * coming[i]
            torch.testing.assert_close(weight.detach() - before[i], step, rtol=1e-9, atol=1e-12)
            if metric is not None:
                torch.testing.assert_close(metric[i], expected[i], rtol=1e-12, atol=0)


def test_groups_have_their_own_eps_and_a_teleporting_optimizer_has_its_bases_metric():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    first, second = list(model[0].parameters()), list(model[2].parameters())
    base = torch.optim.Adagrad([{"params": first, "eps": 0.5}, {"params": second, "eps": 0.25}])
    optimizer = TeleportingOptimizer(base, model, nn.CrossEntropyLoss(), "rescaling")
    metric = MetricNorm.of(optimizer, list(model.parameters())).metric
    assert [a.unique().tolist() for a in metric] == [[2.0], [2.0], [4.0], [4.0]]


def test_a_teleport_climbs_the_metric_norm_of_its_optimizer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 7), nn.LeakyReLU(0.1), nn.Linear(7, 3)).double()
    x, y, loss_fn = torch.randn(5, 9).double(), torch.arange(5) % 3, nn.CrossEntropyLoss()
    base = torch.optim.Adagrad(model.parameters(), lr=0.1)
    loss_fn(model(x), y).backward()
    base.step()
    optimizer = TeleportingOptimizer(base, model, loss_fn, "rescaling")
    moving = optimizer.moving
    objective = MetricNorm.of(base, moving)
    optimizer.search = GradientAscent(iterations=3, objective=objective)
    names = [name for name, _ in model.named_parameters()]
    loss = NetworkLoss(model, names, loss_fn, x, y)
    assert all(a is b for a, b in zip(moving, model.parameters(), strict=True))
    before = objective(moving, loss).item()
    move = optimizer.teleport(x, y)
    assert objective(moving, loss).item() > 1.05 * before
    assert move.invariance_error() < 1e-12


@pytest.mark.parametrize("name", ACTIONS)
def test_a_negated_objective_is_descended(name):
    found, parameters, loss = climbed(
        GradientAscent(iterations=4, objective=Negated(gradient_norm)), name
    )
    before, after = gradient_norm(parameters, loss), gradient_norm(found.parameters, loss)
    assert (after < 0.99 * before).all()
    torch.testing.assert_close(loss(found.parameters), loss(parameters), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ACTIONS)
def test_the_bound_is_kept_and_comes_near(name):
    free, parameters, loss = climbed(GradientAscent(iterations=20, initial_step=0.5), name)
    before = gradient_norm(parameters, loss)
    assert (gradient_norm(free.parameters, loss) > 1.5 * before).all()
    found, _, _ = climbed(GradientAscent(iterations=20, initial_step=0.5, max_ratio=1.5), name)
    ratio = gradient_norm(found.parameters, loss) / before
    assert (ratio <= 1.5).all()
    assert (ratio > 1.45).all()
    most = 1.2 * before.max().item()
    found, _, _ = climbed(
        GradientAscent(iterations=20, initial_step=0.5, max_value=most, max_ratio=9), name
    )
    after = gradient_norm(found.parameters, loss)
    assert (after <= most).all()
    assert (after > before).all()


def test_a_bound_that_is_never_met_changes_nothing_bit_for_bit():
    free, _, _ = climbed(GradientAscent(iterations=3), "rescaling")
    loose, _, _ = climbed(GradientAscent(iterations=3, max_value=1e30, max_ratio=1e30), "rescaling")
    for a, b in zip(free.parameters, loose.parameters, strict=True):
        assert torch.equal(a, b)


def test_a_task_above_the_bound_stays_and_the_others_climb():
    _, parameters, _, loss = setting()
    start = gradient_norm(parameters, loss)
    most = start.median().item()
    found, _, _ = climbed(GradientAscent(iterations=2, max_value=most * (1 + 1e-9)), "rescaling")
    moved = (found.parameters[0] != parameters[0]).flatten(1).any(1)
    assert moved.tolist() == (start < most).tolist()


def test_the_bound_of_a_negative_objective_is_a_fraction_of_its_start():
    found, parameters, loss = climbed(
        GradientAscent(
            iterations=20, initial_step=0.5, objective=Negated(gradient_norm), max_ratio=1.1
        ),
        "rescaling",
    )
    ratio = gradient_norm(found.parameters, loss) / gradient_norm(parameters, loss)
    assert (ratio >= 1 / 1.1).all()
    assert (ratio < 0.92).all()


def test_an_infinite_value_is_not_accepted():
    def spike(parameters, loss):
        total = parameters[0].sum(dim=(-2, -1))
        return torch.where(total == start, total, total + math.inf)

    start = setting()[1][0].sum(dim=(-2, -1))
    found, parameters, _ = climbed(GradientAscent(iterations=2, objective=spike), "rescaling")
    assert torch.equal(found.parameters[0], parameters[0])


def test_bad_options_are_refused_in_one_line():
    weight, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    adam = torch.optim.Adam([weight])
    with pytest.raises(UserError, match="after at least one step, got Adam with no buffers"):
        MetricNorm.of(adam, [weight])
    with pytest.raises(UserError, match="parameters that the optimizer holds"):
        MetricNorm.of(adam, [other])
    sgd = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    weight.grad = torch.ones(2)
    sgd.step()
    with pytest.raises(UserError, match="got SGD with momentum_buffer"):
        MetricNorm.of(sgd, [weight])
    with pytest.raises(UserError, match=r"shapes \[\(2,\)\], got \[\(3,\)\]"):
        MetricNorm([torch.ones(2)])([torch.ones(3)], lambda values: values[0].sum())
    for options in ({"max_value": math.nan}, {"max_ratio": 1.0}, {"max_ratio": math.nan}):
        with pytest.raises(UserError, match="max_ratio > 1"):
            GradientAscent(**options)
