"""Ordinary optimizers by name: their schedules against torch's own, their state, Muon's part."""

import copy
import math

import pytest
import torch
from torch import nn

from metaopt import UserError
from metaopt.evaluation import ordinary
from metaopt.evaluation.ordinary import ORDINARY, hidden_matrices, warm_cosine
from metaopt.extras import MissingExtra

STEPS = 20


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.inner = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 5))
        self.head = nn.Linear(5, 7)

    def forward(self, x):
        return self.head(self.inner(self.embed(x)))


def model():
    torch.manual_seed(0)
    return Tokens().double()


def train(own, optimizer, steps, start=0):
    losses = []
    for step in range(start, start + steps):
        x = torch.arange(7).roll(step)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(own(x), (x + 1) % 7)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_a_cosine_rises_and_ends_at_zero():
    factor = warm_cosine(100)
    assert [factor(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factor(4 + 95 // 2) == pytest.approx(0.5, abs=0.02)
    assert factor(98) > factor(99) == pytest.approx(0, abs=1e-12)
    assert factor(500) == pytest.approx(0, abs=1e-12)
    values = [factor(step) for step in range(4, 100)]
    assert values == sorted(values, reverse=True)
    assert warm_cosine(1)(0) == 1
    with pytest.raises(UserError, match="total_steps"):
        warm_cosine(0)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("adamw_cosine", lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.3)),
        ("sgd_cosine", lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=0.3)),
    ],
)
def test_a_cosine_is_torchs_scheduler_beside_torchs_optimizer(name, make):
    own, other = model(), model()
    losses = train(own, ORDINARY[name].optimizer(own, STEPS, 0.01, 0.3), STEPS)
    base = make(other.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(base, warm_cosine(STEPS))
    expected = []
    for step in range(STEPS):
        expected += train(other, base, 1, step)
        schedule.step()
    assert losses == expected


@pytest.mark.parametrize("name", ORDINARY)
def test_every_one_lowers_the_loss_and_goes_on_from_its_state(name):
    ordinary_one = ORDINARY[name]
    own = model()
    optimizer = ordinary_one.optimizer(own, STEPS)
    before = train(own, optimizer, STEPS // 2)
    weights, state = copy.deepcopy(own.state_dict()), copy.deepcopy(optimizer.state_dict())
    whole = train(own, optimizer, STEPS // 2, STEPS // 2)
    assert whole[-1] < before[0]
    again = model()
    again.load_state_dict(weights)
    fresh = ordinary_one.optimizer(again, STEPS)
    fresh.load_state_dict(state)
    assert train(again, fresh, STEPS // 2, STEPS // 2) == whole


def test_muon_steps_hidden_matrices_and_adamw_the_rest():
    own = model()
    assert [p.shape for p in hidden_matrices(own)] == [(6, 4), (5, 6)]
    optimizer = ORDINARY["muon"].optimizer(own, STEPS, 0.01)
    train(own, optimizer, 2)
    of_muon = [p for p in own.parameters() if "momentum_buffer" in optimizer.state[p]]
    of_adam = [p for p in own.parameters() if "exp_avg" in optimizer.state[p]]
    assert [p.shape for p in of_muon] == [(6, 4), (5, 6)]
    assert len(of_muon) + len(of_adam) == len(list(own.parameters()))
    assert {group["lr"] for group in optimizer.param_groups} == {0.01 * warm_cosine(STEPS)(1)}
    single = nn.Linear(3, 2)  # its one matrix is the output layer
    assert not hidden_matrices(single)
    assert len(ORDINARY["muon"].optimizer(single, STEPS).param_groups) == 1


def test_frozen_parameters_stay_and_a_model_without_others_is_refused():
    own = model()
    own.inner.requires_grad_(False)
    before = copy.deepcopy(own.inner.state_dict())
    train(own, ORDINARY["muon"].optimizer(own, STEPS), 3)
    assert all(torch.equal(value, before[name]) for name, value in own.inner.state_dict().items())
    own.requires_grad_(False)
    for name in ORDINARY:
        with pytest.raises(UserError, match="unfreeze some"):
            ORDINARY[name].optimizer(own, STEPS)


def test_a_closure_is_called_once_with_gradients():
    own = model()
    optimizer, calls = ORDINARY["adamw_cosine"].optimizer(own, STEPS), []

    def closure():
        calls.append(torch.is_grad_enabled())
        loss = own(torch.arange(7)).square().mean()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() > 0
    assert calls == [True]


@pytest.mark.parametrize(("rate", "decay"), [(0, 0), (-1, 0), (math.nan, 0), (0.1, -1)])
def test_rates_and_decays_that_are_none_are_refused(rate, decay):
    with pytest.raises(UserError, match=r"as in adamw@0\.001"):
        ORDINARY["adamw"].optimizer(model(), STEPS, rate, decay)


def test_schedule_free_names_its_extra(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(ordinary, "import_module", missing)
    with pytest.raises(MissingExtra, match="the extra 'studies'"):
        ORDINARY["schedule_free"].optimizer(model(), STEPS)
