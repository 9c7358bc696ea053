"""Penalties beside the loss: they are recognised, and are part of the model."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import metaopt
from metaopt.learned.place import Place


def fitted(penalty, steps, biased=True, hook=None, depth=2, spread=None):
    torch.manual_seed(0)
    sizes = [4, *[10] * (depth - 1), 2]
    layers = []
    for fan_in, out in pairwise(sizes):
        layers += [nn.Linear(fan_in, out, biased), nn.Tanh()]
    model = nn.Sequential(*layers[:-1]).double()
    x = torch.randn(30, 4, dtype=torch.float64)
    y = torch.randn(30, 2, dtype=torch.float64)
    optimizer = metaopt.LearnedOptimizer(model, "lstm_whitened")
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y) + penalty(model)
        loss.backward()
        if hook is not None:
            hook(model)
        optimizer.step()
        losses.append(loss.item())
    return model, losses, (x, y), optimizer


def ridge(strength):
    return lambda model: strength * sum(p.square().sum() for p in model.parameters())


@pytest.mark.parametrize("strength", [1e-3, 1e-1, 10.0])
def test_ridge_regression_reaches_its_closed_form(strength):
    model, _, (x, y), _ = fitted(ridge(strength), 40, biased=False, depth=1)
    count = y.numel()
    a = x.mT @ x / count + strength * torch.eye(4, dtype=torch.float64)
    expected = torch.linalg.solve(a, x.mT @ y / count).mT
    torch.testing.assert_close(model[0].weight.detach(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strength", [1e-3, 1e-2])
def test_a_penalised_network_is_where_l_bfgs_is(strength):
    _, losses, (x, y), _ = fitted(ridge(strength), 60)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 10), nn.Tanh(), nn.Linear(10, 2)).double()
    lbfgs = torch.optim.LBFGS(
        model.parameters(), max_iter=600, line_search_fn="strong_wolfe", tolerance_change=0
    )

    def closure():
        lbfgs.zero_grad()
        loss = F.mse_loss(model(x), y) + ridge(strength)(model)
        loss.backward()
        return loss

    lbfgs.step(closure)
    assert losses[-1] <= 1.2 * closure().item()
    assert max(losses) <= losses[0]


def curvatures(monkeypatch, penalty, **options):
    """The curvatures of penalties that the steps were made with."""
    seen, before = [], Place.penalties

    def kept(self):
        found = before(self)
        seen.append([own.clone() for own in found])
        return found

    monkeypatch.setattr(Place, "penalties", kept)
    fitted(penalty, 6, **options)
    return seen


def test_the_curvature_of_a_square_is_its_second_derivative(monkeypatch):
    found = curvatures(monkeypatch, ridge(0.01))
    assert len(found) >= 4
    unit = 2 / 60  # of a mean squared error of 30 samples of 2 outputs
    for own in found[-1]:
        torch.testing.assert_close(own, torch.full_like(own, 0.02 / unit), rtol=1e-4, atol=0)


def test_a_penalty_of_the_weights_alone_leaves_the_biases(monkeypatch):
    def weights(model):
        return 0.01 * sum(p.square().sum() for p in model.parameters() if p.dim() == 2)

    found = curvatures(monkeypatch, weights)
    for own in found[-1]:
        torch.testing.assert_close(own[:, :-1].median(), torch.tensor(0.6).double())
        assert (own[:, -1].abs() < 1e-6).all()


@pytest.mark.parametrize("kind", ["clipped", "none", "noise"])
def test_nothing_else_is_taken_for_a_penalty(monkeypatch, kind):
    generator = torch.Generator().manual_seed(3)

    def changed(model):
        if kind == "clipped":
            nn.utils.clip_grad_norm_(model.parameters(), 1e-2)
        if kind == "noise":
            for p in model.parameters():
                noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
                p.grad += 0.1 * p.grad.norm() * noise / p.numel() ** 0.5

    assert curvatures(monkeypatch, lambda model: 0.0, hook=changed) == []


def test_absolute_values_are_bounded_from_above(monkeypatch):
    """Of the parabola that touches s |w| the curvature is s / |w|."""
    found = curvatures(monkeypatch, lambda m: 0.01 * sum(p.abs().sum() for p in m.parameters()))
    assert len(found) >= 3
    assert all((own >= 0).all() for own in found[-1])
    _, losses, _, _ = fitted(lambda m: 0.001 * sum(p.abs().sum() for p in m.parameters()), 60)
    _, first, _, _ = fitted(lambda m: 0.001 * sum(p.abs().sum() for p in m.parameters()), 6)
    assert losses[-1] < 0.9 * first[-1]
