"""phi (eq. 13): against a loop over the points, closed forms, and as an objective."""

import math

import pytest
import torch
from cases import mixed_signs
from torch import nn
from torch.nn import functional

from metaopt import TeleportingOptimizer, UserError
from metaopt.measures import Sharpness, around, sharpness
from metaopt.measures.around import Points, losses_of
from metaopt.measures.column_loss import cross_entropy, of_columns
from metaopt.measures.directions import unit_directions
from metaopt.symmetry import GradientAscent, LayerChain, LeakyReLU, Negated, as_chain
from metaopt.symmetry.functional import NetworkLoss

T = (0.01, 0.3, 1.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mlp(bias=True):
    torch.manual_seed(0)
    layers = [nn.Linear(7, 5, bias=bias), nn.LeakyReLU(0.1), nn.Linear(5, 4, bias=bias)]
    return nn.Sequential(*layers, nn.Tanh(), nn.Linear(4, 3, bias=bias)).double()


def chain_of(model) -> LayerChain:
    chain = as_chain(model)
    assert isinstance(chain, LayerChain), chain
    return chain


def data(classes=True):
    x = torch.randn(11, 7, generator=generator(5), dtype=torch.float64)
    y = torch.arange(11) % 3
    return x, y if classes else torch.randn(11, 3, generator=generator(6), dtype=torch.float64)


def looped(model, loss_fn, x, y, displacements, directions):
    """The losses ``(T, D)`` one after another, by writing the weights."""
    parameters = list(model.parameters())
    origin = [p.detach().clone() for p in parameters]
    rows = []
    with torch.no_grad():
        for t in displacements:
            row = []
            for index in range(len(directions[0])):
                for p, w, d in zip(parameters, origin, directions, strict=True):
                    p.copy_(w + t * d[index])
                row.append(float(loss_fn(model(x), y)))
            rows.append(row)
        for p, w in zip(parameters, origin, strict=True):
            p.copy_(w)
    return torch.tensor(rows, dtype=torch.float64)


class Residual(nn.Module):
    """No chain."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b = nn.Linear(7, 7).double(), nn.Linear(7, 3).double()

    def forward(self, x):
        return self.b(x + torch.tanh(self.a(x)))


@pytest.mark.parametrize("budget", [1, 40, 2**19])
@pytest.mark.parametrize(
    ("make", "loss_fn", "classes"),
    [
        (mlp, functional.cross_entropy, True),
        (lambda: mlp(bias=False), nn.CrossEntropyLoss(), True),
        (mlp, nn.CrossEntropyLoss(label_smoothing=0.2), True),
        (mlp, nn.CrossEntropyLoss(weight=torch.rand(3).double(), reduction="sum"), True),
        (mlp, functional.mse_loss, False),
        (Residual, functional.cross_entropy, True),
    ],
)
def test_it_is_the_mean_of_a_loop_over_the_points(make, loss_fn, classes, budget, monkeypatch):
    monkeypatch.setattr(around, "BUDGET", budget)
    model, (x, y) = make(), data(classes)
    directions = unit_directions(list(model.parameters()), 5, generator(2))
    expected = looped(model, loss_fn, x, y, T, directions).mean().item()
    phi = sharpness(model, loss_fn, x, y, generator(2), T, directions=5)
    assert phi == pytest.approx(expected, rel=1e-12)


def test_a_chain_and_any_model_agree_point_by_point():
    model, (x, y) = mlp(), data()
    parameters = [p.detach() for p in model.parameters()]
    loss = NetworkLoss(model, chain_of(model).names, functional.cross_entropy, x, y)
    points = Points(
        torch.tensor(T, dtype=torch.float64), unit_directions(parameters, 6, generator())
    )
    each = losses_of(loss, parameters, points)
    layers = chain_of(model).layers(parameters)
    surroundings = around.Surroundings(chain_of(model), x.mT, points)
    of_chain = surroundings.losses(layers, of_columns(loss.loss_fn, y))
    torch.testing.assert_close(of_chain, each, rtol=1e-12, atol=1e-13)
    expected = looped(
        model, functional.cross_entropy, x, y, points.displacements, points.directions
    )
    torch.testing.assert_close(each, expected, rtol=1e-12, atol=1e-13)


def test_another_batch_is_another_sharpness():
    model, (x, y) = mlp(), data()
    parameters = [p.detach() for p in model.parameters()]
    chain = chain_of(model)
    objective = Sharpness.drawn(parameters, generator(), T, 3, chain)
    for batch in (x, x.flip(0), x):
        loss = NetworkLoss(model, chain_of(model).names, functional.cross_entropy, batch, y)
        fresh = Sharpness.drawn(parameters, generator(), T, 3, chain)(parameters, loss)
        assert torch.equal(objective(parameters, loss), fresh)


def test_of_a_quadratic_it_is_known():
    """L = w'Aw / 2: over d and -d the mean of L(w + td) is L(w) + t^2 d'Ad / 2."""
    a = torch.diag(torch.tensor([1.0, 2.0, 5.0, 0.5])).double()
    w = torch.tensor([1.0, -2.0, 0.5, 3.0]).double()

    def loss(parameters):
        return 0.5 * parameters[0] @ a @ parameters[0]

    (d,) = unit_directions([w], 400, generator())
    objective = Sharpness(torch.tensor(T, dtype=torch.float64), [torch.cat((d, -d))])
    mean_square = sum(t * t for t in T) / len(T)
    along = torch.einsum("ni,ij,nj->n", d, a, d).mean()
    expected = loss([w]) + 0.5 * mean_square * along
    torch.testing.assert_close(objective([w], loss), expected, rtol=1e-12, atol=0)
    assert along.item() == pytest.approx(a.trace().item() / 4, rel=0.1), "uniform on the sphere"


def test_directions_are_units_uniform_on_the_sphere_and_of_the_seed():
    parameters = [torch.zeros(3, 2), torch.zeros(4)]
    drawn = unit_directions(parameters, 4000, generator(1))
    flat = torch.cat([d.flatten(1) for d in drawn], dim=1)
    torch.testing.assert_close(flat.norm(dim=1), torch.ones(4000))
    assert flat.mean(dim=0).abs().max() < 0.03
    torch.testing.assert_close(flat.mT @ flat / 4000, torch.eye(10) / 10, rtol=0, atol=0.01)
    for again, d in zip(unit_directions(parameters, 4000, generator(1)), drawn, strict=True):
        assert torch.equal(again, d)


def test_of_a_batch_of_tasks_each_has_its_own():
    family = mixed_signs(4, 6, 5, 3)
    tasks = family.sample((0, 1, 2))
    parameters = [p.detach() for p in tasks.parameters()]
    directions = unit_directions([p[0] for p in parameters], 7, generator())

    def loss_of(batch):
        chain = batch.chain
        return lambda values: (
            (batch.y - chain.output(chain.layers(values), batch.x)).square().sum(dim=(-2, -1))
        )

    together = Sharpness(torch.tensor(T, dtype=torch.float64), directions)(
        parameters, loss_of(tasks)
    )
    assert together.shape == (3,)
    for index, seed in enumerate((0, 1, 2)):
        alone = family.sample([seed])
        own = [p.detach() for p in alone.parameters()]
        phi = Sharpness(torch.tensor(T, dtype=torch.float64), directions)(own, loss_of(alone))
        torch.testing.assert_close(together[index : index + 1], phi, rtol=1e-12, atol=0)


@pytest.mark.parametrize("budget", [30, 2**19])
@pytest.mark.parametrize("as_a_chain", [True, False])
def test_it_is_differentiable_in_the_parameters(as_a_chain, budget, monkeypatch):
    monkeypatch.setattr(around, "BUDGET", budget)
    model, (x, y) = mlp(), data()
    chain = chain_of(model)
    loss = NetworkLoss(model, chain.names, functional.cross_entropy, x, y)
    parameters = [p.detach() for p in model.parameters()]
    objective = Sharpness.drawn(parameters, generator(), T, 4, chain=chain if as_a_chain else None)
    own = [p.clone().requires_grad_() for p in parameters]
    gradients = torch.autograd.grad(objective(own, loss), own)
    for index, gradient in enumerate(gradients):
        direction = torch.randn_like(gradient)
        values = []
        for sign in (1e-6, -1e-6):
            moved = list(parameters)
            moved[index] = parameters[index] + sign * direction
            values.append(objective(moved, loss).item())
        numeric = (values[0] - values[1]) / 2e-6
        assert (gradient * direction).sum().item() == pytest.approx(numeric, rel=1e-6)


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("action", ["rescaling", "pre_activation"])
def test_a_teleport_changes_it_and_keeps_the_loss(action, direction):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 12), nn.LeakyReLU(0.1), nn.Linear(12, 3)).double()
    x, y = data()
    with torch.no_grad():
        model[0].weight.mul_(3.0)  # not at the bottom of its orbit
    parameters = [p.detach().clone() for p in model.parameters()]
    objective = Sharpness.drawn(parameters, generator(), (0.5, 1.0), 20, chain_of(model))
    climbed = objective if direction > 0 else Negated(objective)
    optimizer = TeleportingOptimizer(
        torch.optim.SGD(model.parameters(), 0.1),
        model,
        functional.cross_entropy,
        action,
        search=GradientAscent(iterations=5, initial_step=0.3, objective=climbed),
    )
    loss = NetworkLoss(model, chain_of(model).names, functional.cross_entropy, x, y)
    before, at = objective(parameters, loss), functional.cross_entropy(model(x), y)
    optimizer.teleport(x, y)
    after = objective([p.detach() for p in model.parameters()], loss)
    assert direction * (after - before) > 1e-3
    torch.testing.assert_close(functional.cross_entropy(model(x), y), at, rtol=1e-8, atol=0)


def test_cross_entropy_of_columns_is_torchs_of_rows():
    output = torch.randn(2, 3, 4, 6, generator=generator()).double()
    y = torch.arange(6) % 4
    each = cross_entropy(output, y)
    for i in range(2):
        for j in range(3):
            expected = functional.cross_entropy(output[i, j].mT, y)
            torch.testing.assert_close(each[i, j], expected)


@pytest.mark.parametrize(
    ("loss_fn", "ignored"),
    [
        (nn.CrossEntropyLoss(ignore_index=0), None),
        (nn.CrossEntropyLoss(), -100),
        (functional.cross_entropy, -100),
    ],
)
def test_classes_that_the_loss_ignores_do_not_count(loss_fn, ignored):
    model, (x, y) = mlp(), data()
    if ignored is not None:
        y = torch.where(y == 0, ignored, y)
    phi = sharpness(model, loss_fn, x, y, generator(), (1e-12,), 2)
    assert phi == pytest.approx(loss_fn(model(x), y).item(), rel=1e-9)


def test_a_batch_that_is_refilled_in_place_is_another_batch():
    model, (x, y) = mlp(), data()
    parameters = [p.detach() for p in model.parameters()]
    chain, names = chain_of(model), chain_of(model).names
    objective = Sharpness.drawn(parameters, generator(), T, 3, chain)
    loss = NetworkLoss(model, names, functional.cross_entropy, x, y)
    with torch.inference_mode():
        objective(parameters, loss)
    objective(parameters, loss)
    x.mul_(10)
    fresh = Sharpness.drawn(parameters, generator(), T, 3, chain)(parameters, loss)
    assert torch.equal(objective(parameters, loss), fresh)
    own = [p.clone().requires_grad_() for p in parameters]
    assert torch.autograd.grad(objective(own, loss), own)[0].isfinite().all()


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.rnn, self.out = nn.LSTM(7, 4, batch_first=True).double(), nn.Linear(4, 3).double()

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])


@pytest.mark.parametrize("shape", [(11, 2, 7), (11, 7)])
def test_models_without_a_batching_rule_and_inputs_of_three_dimensions_are_measured(shape):
    x = torch.randn(*shape, generator=generator(4), dtype=torch.float64)
    model = Recurrent() if len(shape) == 3 else mlp()
    y = torch.arange(11) % 3
    directions = unit_directions(list(model.parameters()), 2, generator(2))
    expected = looped(model, functional.cross_entropy, x, y, T, directions).mean().item()
    phi = sharpness(model, functional.cross_entropy, x, y, generator(2), T, directions=2)
    assert phi == pytest.approx(expected, rel=1e-10)


def test_linear_layers_take_samples_of_three_dimensions():
    x, model = torch.randn(11, 4, 7, generator=generator(4), dtype=torch.float64), mlp()
    y = torch.randn(11, 4, 3, generator=generator(5), dtype=torch.float64)
    phi = sharpness(model, functional.mse_loss, x, y, generator(), (1e-12,), 2)
    assert phi == pytest.approx(functional.mse_loss(model(x), y).item(), rel=1e-9)


def test_what_is_too_large_to_be_kept_is_computed_again(monkeypatch):
    model, (x, y) = mlp(), data()
    expected = sharpness(model, functional.cross_entropy, x, y, generator(2), T, 5)
    monkeypatch.setattr(around, "KEPT", 10)
    monkeypatch.setattr(around, "BUDGET", 500)
    again = sharpness(model, functional.cross_entropy, x, y, generator(2), T, 5)
    assert again == pytest.approx(expected, rel=1e-12)


def test_modes_and_weights_are_left_alone():
    model = nn.Sequential(
        nn.Linear(7, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 3)
    ).double()
    model.train()
    model[2].eval()
    x, y = data()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    first, second = (
        sharpness(model, functional.cross_entropy, x, y, generator(3), T, 3) for _ in range(2)
    )
    assert first == second
    assert model.training
    assert not model[2].training
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"directions": 0}, "expected 1 direction or more, got 0"),
        ({"displacements": ()}, "expected displacements, one finite number or more"),
        ({"displacements": (0.1, math.nan)}, "expected displacements, one finite number or more"),
    ],
)
def test_bad_points_are_refused(options, message):
    model, (x, y) = mlp(), data()
    with pytest.raises(UserError, match=message):
        sharpness(model, functional.cross_entropy, x, y, generator(), **options)


def test_a_frozen_model_and_parameters_of_other_shapes_are_refused():
    model, (x, y) = Residual().requires_grad_(False), data()
    with pytest.raises(UserError, match="expected a model with parameters that need a gradient"):
        sharpness(model, functional.cross_entropy, x, y, generator())
    objective = Sharpness.drawn([torch.zeros(3, 2)], generator(), T, 2)
    with pytest.raises(UserError, match="expected parameters for directions of shapes"):
        objective([torch.zeros(2, 3)], lambda values: values[0].sum())


def test_the_slope_of_the_first_activation_counts():
    """A kink inside the displacements: not a Taylor expansion at w."""
    model = nn.Sequential(
        nn.Linear(1, 1, bias=False), nn.LeakyReLU(0.1), nn.Linear(1, 1, bias=False)
    )
    with torch.no_grad():
        model[0].weight.fill_(-0.2)
        model[2].weight.fill_(1.0)
    x, y = torch.ones(1, 1), torch.zeros(1, 1)
    d = [torch.ones(1, 1, 1), torch.zeros(1, 1, 1)]
    objective = Sharpness(torch.tensor([0.5]), d, chain_of(model))
    loss = NetworkLoss(model, chain_of(model).names, functional.mse_loss, x, y)
    phi = objective([p.detach() for p in model.parameters()], loss)
    assert phi.item() == pytest.approx(0.3**2)
    assert LeakyReLU(0.1)(torch.tensor(-0.2)).item() == pytest.approx(-0.02)
