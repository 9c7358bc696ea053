"""K-FAC by hand, and the decomposed curvature that it steps in."""

from itertools import pairwise

import pytest
import torch
from rule_cases import (
    assert_a_lost_task_stops_no_other,
    assert_tasks_together_are_stepped_as_each_alone,
)
from torch import nn

from metaopt.evaluation.rollout import rollout
from metaopt.learned.chain_pass import ChainDerivatives
from metaopt.learned.kronecker import curvature
from metaopt.learned.meta_optimizer import MetaOptimizer, MetaOptimizerSpec
from metaopt.learned.observation import Observation
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.output_loss import SOFTMAX
from metaopt.symmetry import Elementwise, Identity, LayerChain
from metaopt.tasks import NetworkFamily

TANH = Elementwise("Tanh", torch.tanh)
FAMILY = NetworkFamily(4, 5, 2, depth=3, samples=9, activation="tanh", dtype="float64")


def kfac(tasks, trust=0.2, damping=0.03, rate=0.3, momentum=0.5):
    spec = MetaOptimizerSpec(
        update="kfac", element="none", first_trust=trust,
        kfac_damping=damping, kfac_rate=rate, kfac_momentum=momentum,
    )  # fmt: skip
    return LearnedOptimizer(tasks, MetaOptimizer(spec))


def factors(seen):
    x = seen.as_given[1].double()
    return curvature(seen.chain, seen.double_layers, x).factors


def observed(biased: bool):
    torch.manual_seed(0)
    sizes = (3, 4, 2)
    chain = LayerChain((TANH, Identity()), (biased, biased))
    parameters = []
    for fan_in, out in pairwise(sizes):
        parameters.append(torch.randn(out, fan_in, dtype=torch.float64))
        if biased:
            parameters.append(torch.randn(out, dtype=torch.float64))
    x = torch.randn(3, 7, dtype=torch.float64)
    gradients = [torch.randn_like(p) for p in parameters]
    return Observation.of(chain, parameters, gradients, x), parameters, x


@pytest.mark.parametrize("biased", [False, True])
def test_the_factors_are_those_of_naive_sums_over_samples(biased):
    seen, parameters, x = observed(biased)
    w1, w2 = parameters[0], parameters[2 if biased else 1]
    b1 = parameters[1] if biased else torch.zeros(4, dtype=torch.float64)
    samples = x.shape[1]
    s1 = torch.zeros(4, 4, dtype=torch.float64)
    c = [0.0, 0.0]
    for n in range(samples):
        z = w1 @ x[:, n] + b1
        h, slope = torch.tanh(z), 1 - torch.tanh(z) ** 2
        s1 += torch.outer(slope, slope) / samples
        for m, a in enumerate((x[:, n], h)):
            own = torch.cat((a, torch.ones(1, dtype=torch.float64))) if biased else a
            c[m] = c[m] + torch.outer(own, own)
    s = [(w2.T @ w2) * s1, torch.eye(2, dtype=torch.float64)]
    for found, left, right in zip(factors(seen), s, c, strict=True):
        expected = torch.kron(left, right)
        basis = torch.kron(found.left, found.right)
        diagonal = basis.T @ expected @ basis
        torch.testing.assert_close(
            diagonal, torch.diag(found.curvature.flatten()), rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize("biased", [False, True])
def test_tangents_are_directional_derivatives_of_the_output(biased):
    seen, _, x = observed(biased)
    layers = seen.double_layers
    directions = [
        torch.randn(n, *own.augmented().shape).double()
        for n, own in ((2, layers[0]), (3, layers[1]))
    ]
    found = ChainDerivatives(layers, curvature(seen.chain, layers, x)).tangents(directions)

    def output(*augmented):
        own = [
            layer._replace(weight=a[:, :-1], bias=a[:, -1]) if biased else layer._replace(weight=a)
            for a, layer in zip(augmented, layers, strict=True)
        ]
        return seen.chain.output(own, x)

    weights = tuple(layer.augmented() for layer in layers)
    expected = []
    for place, of_layer in enumerate(directions):
        for d in of_layer:
            moves = tuple(d if m == place else torch.zeros_like(w) for m, w in enumerate(weights))
            expected.append(torch.func.jvp(output, weights, moves)[1])
    torch.testing.assert_close(found, torch.stack(expected))


def test_of_classes_the_last_factor_is_the_mean_hessian_of_the_cross_entropy():
    seen, _, x = observed(True)
    layers = seen.double_layers
    s = torch.zeros(2, 2).double()
    for f in seen.chain.output(layers, x).mT:
        p = f.softmax(dim=0)
        s += (torch.diag(p) - torch.outer(p, p)) / x.shape[1]
    last = curvature(seen.chain, layers, x, SOFTMAX).factors[-1]
    outer = last.left @ torch.diag(last.curvature[:, -1] / last.curvature[-1, -1]) @ last.left.T
    torch.testing.assert_close(outer, s / torch.linalg.eigvalsh(s)[-1])


def test_of_a_linear_layer_the_factors_are_the_hessian():
    tasks = NetworkFamily(4, 4, 3, depth=1, samples=9, dtype="float64").sample([1])
    parameters = [p.detach() for p in tasks.parameters()]

    def loss(weight, bias):
        return torch.func.functional_call(tasks, {"W1": weight, "b1": bias}, ()).sum()

    rows = torch.autograd.functional.hessian(loss, tuple(parameters))[0][0].reshape(12, 12)
    seen = Observation.of(tasks.chain, parameters, parameters, tasks.x)
    (found,) = factors(seen)
    c = found.right[0] @ torch.diag(found.curvature[0, 0]) @ found.right[0].T
    torch.testing.assert_close(torch.kron(torch.eye(3).double(), c[:4, :4]), rows)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_a_step_of_kfac_is_that_of_a_dense_solve(momentum):
    tasks = FAMILY.sample([1, 2])
    optimizer = kfac(tasks, momentum=momentum, damping=0.1, rate=0.01, trust=1.0)
    last = None
    for _ in range(2):
        parameters = [p.detach().clone() for p in tasks.parameters()]
        optimizer.zero_grad()
        tasks().sum().backward()
        gradients = [p.grad.clone() for p in tasks.parameters()]
        seen = Observation.of(tasks.chain, parameters, gradients, tasks.x)
        optimizer.step()
        moved = [p.detach() - w for p, w in zip(tasks.parameters(), parameters, strict=True)]
        for layer, (found, step, g) in enumerate(
            zip(factors(seen), *map(tasks.chain.layers, (moved, gradients)), strict=True)
        ):
            for task in range(2):
                basis = torch.kron(found.left[task], found.right[task])
                k = found.curvature[task].flatten()
                dense = basis @ torch.diag(k + 0.1 * k.max()) @ basis.T
                f = -0.01 * torch.linalg.solve(dense, g.augmented()[task].flatten())
                if last is not None:
                    f = f + momentum * last[layer][task].flatten()
                torch.testing.assert_close(
                    step.augmented()[task].flatten(), f, rtol=1e-7, atol=1e-12
                )
        last = [layer.augmented() for layer in tasks.chain.layers(moved)]


def test_no_step_is_longer_than_the_quadratic_model_vouches_for():
    """A whole Newton step to a loss of 0 would change it by itself; so half of it is made."""
    tasks = NetworkFamily(6, 6, 3, depth=1, samples=4, dtype="float64").sample([1, 2, 3])
    optimizer = kfac(tasks, momentum=0.0, damping=1e-12, rate=1.0, trust=1.0)
    run = rollout(tasks, optimizer, 3)
    torch.testing.assert_close(run.losses[1:] / run.losses[:-1], torch.full((3, 3), 0.25).double())


def test_tasks_together_are_stepped_as_each_alone():
    assert_tasks_together_are_stepped_as_each_alone(FAMILY, kfac, rtol=1e-6, atol=1e-9)


def test_a_lost_task_stops_no_other():
    assert_a_lost_task_stops_no_other(FAMILY, kfac)


def test_trust_begins_low_comes_back_and_falls_where_the_loss_rose():
    tasks = FAMILY.sample([1])
    optimizer = kfac(tasks, trust=0.2)
    rollout(tasks, optimizer, 3)
    assert optimizer.learned_state["update"][-1][1, 0] == pytest.approx(0.2 * 1.2**2)
    with torch.no_grad():
        tasks.y.mul_(1.5)  # the loss rises, by less than the factor at which a step is taken back
    rollout(tasks, optimizer, 1)
    assert optimizer.learned_state["update"][-1][1, 0] < 0.2


def test_a_step_that_raised_the_loss_much_is_taken_back():
    tasks = FAMILY.sample([1, 2])
    optimizer = kfac(tasks)
    rollout(tasks, optimizer, 3)
    before = [p.detach().clone() for p in tasks.parameters()]
    rollout(tasks, optimizer, 1)
    y = tasks.y.clone()
    with torch.no_grad():
        tasks.y[0].add_(50.0)  # as if the last step had led there
    rollout(tasks, optimizer, 1)
    for own, then in zip(tasks.parameters(), before, strict=True):
        torch.testing.assert_close(own[0], then[0], rtol=1e-9, atol=1e-12)
        assert not torch.allclose(own[1], then[1], rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        tasks.y.copy_(y)


def test_a_module_is_stepped_as_the_task_that_it_is():
    tasks = FAMILY.sample([3])
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2))
    model = model.double()
    with torch.no_grad():
        for own, given in zip(model.parameters(), tasks.parameters(), strict=True):
            own.copy_(given[0])
    rollout(tasks, kfac(tasks), 8)
    meta = kfac(FAMILY.sample([3])).meta
    optimizer = LearnedOptimizer(model, meta, loss_fn=nn.MSELoss())
    x, y = tasks.x[0].mT, tasks.y[0].mT
    for _ in range(8):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    for own, given in zip(model.parameters(), tasks.parameters(), strict=True):
        torch.testing.assert_close(own, given[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "fields", [{"kfac_damping": 0.0}, {"kfac_rate": -1.0}, {"kfac_momentum": 1.0},
               {"first_trust": 0.0}]
)  # fmt: skip
def test_fields_outside_their_range_are_refused(fields):
    with pytest.raises(ValueError, match=f"expected .*{next(iter(fields))}"):
        MetaOptimizer(MetaOptimizerSpec(update="kfac", element="none", **fields))
