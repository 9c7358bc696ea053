"""Full batches of networks that are no chain: m1 sees their curvature."""

import copy
import warnings

import pytest
import torch
from curved_cases import regression
from torch import nn
from torch.nn import functional as F

import metaopt
from metaopt.learned import curved_module
from metaopt.learned.forward_record import ForwardRecord
from metaopt.learned.module_layout import layout_of
from metaopt.learned.module_pass import SLOW, SeenModule

SHIPPED = pytest.mark.parametrize("name", ["lstm_whitened", "lstm_update_tele"])


class Residual(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 12), nn.Linear(12, 12), nn.Linear(12, 2)
        self.norm, self.dropout = nn.LayerNorm(12), nn.Dropout(dropout)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        h = torch.tanh(self.first(x))
        return self.last(h + self.dropout(torch.tanh(self.second(self.norm(h)))))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(),
        nn.Linear(36, 3),
    )  # fmt: skip


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True)
        self.last = nn.Linear(8, 2)

    def forward(self, x):
        return self.last(self.layer(self.embedding(x)).mean(dim=1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.GRU(2, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x):
        return self.last(self.layer(x)[0][:, -1])


def train(model, name, x, y, steps, loss_fn=F.mse_loss, optimizer=None, **options):
    optimizer = optimizer or metaopt.LearnedOptimizer(model, name, **options)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, optimizer


def made(build, seed=0):
    torch.manual_seed(seed)
    return build()


def images():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(12, 1, 7, 7, generator=generator), torch.arange(12) % 3


CASES = {
    "residual": (Residual, *regression(), F.mse_loss),
    "convolutions": (convolutional, *images(), F.cross_entropy),
    "attention": (Attention, torch.randint(7, (12, 5), generator=torch.Generator().manual_seed(2)),
                  regression(12)[1], F.mse_loss),
    "recurrent": (Recurrent, torch.sin(torch.arange(96.0)).reshape(12, 4, 2),
                  regression(12)[1], F.mse_loss),
}  # fmt: skip


@SHIPPED
@pytest.mark.parametrize(("build", "x", "y", "loss_fn"), CASES.values(), ids=CASES)
def test_it_is_far_below_adam(build, x, y, loss_fn, name):
    losses, optimizer = train(made(build), name, x, y, 40, loss_fn)
    rivals = []
    for rate in (3e-3, 1e-2, 3e-2, 1e-1):
        model = made(build)
        adam = torch.optim.Adam(model.parameters(), rate)
        rivals.append(train(model, name, x, y, 40, loss_fn, adam)[0][-1])
    assert losses[-1] < 0.02 * min(rivals)
    assert max(losses) <= 1.2 * losses[0]
    assert "m1 sees the curvature of" in optimizer.steppers[0].report()


def test_a_batch_that_changes_costs_no_further_pass():
    model = made(Residual)
    optimizer = metaopt.LearnedOptimizer(model, "lstm_whitened", loss_fn=F.mse_loss)
    x, y = regression(60)
    train(model, "", x[:20], y[:20], 1, optimizer=optimizer)  # the first one may come again
    before = model.calls
    for index in range(20, 60, 10):
        rows = slice(index, index + 10)
        train(model, "", x[rows], y[rows], 1, optimizer=optimizer)
    assert model.calls == before + 4


def test_the_passes_of_a_step_are_none_of_the_next():
    """The record of the user's pass says that no other went into the same gradients."""
    model, (x, y) = made(Residual), regression()
    _, optimizer = train(model, "lstm_whitened", x, y, 3)
    assert optimizer.recorder.passes == 0
    assert optimizer.recorder.last is None


@SHIPPED
def test_it_goes_on_from_a_state(name):
    x, y = regression()
    model = made(Residual)
    _, optimizer = train(model, name, x, y, 6)
    other = copy.deepcopy(model)
    kept = metaopt.LearnedOptimizer(other, name)
    kept.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    first = train(model, name, x, y, 6, optimizer=optimizer)[0]
    second = train(other, name, x, y, 6, optimizer=kept)[0]
    # What was measured of the loss begins anew, so the first step after it may be another one.
    assert first[0] == second[0]
    assert second[-1] <= 3 * first[-1] + 1e-6


def gradients_alone(model, x, y, why):
    with pytest.warns(UserWarning, match="m1 sees gradients alone of this model") as caught:
        losses, optimizer = train(model, "lstm_whitened", x, y, 12)
    assert len(caught) == 1
    assert why in str(caught[0].message)
    assert why in optimizer.steppers[0].report()
    assert losses[-1] < losses[0]
    return losses


def test_dropout_is_told():
    x, y = regression()
    gradients_alone(made(lambda: Residual(dropout=0.5)), x, y, "its output is not the same again")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(made(lambda: Residual(dropout=0.5)).eval(), "lstm_whitened", x, y, 3)


class Once(torch.autograd.Function):
    """A function whose second derivative autograd takes for 0."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


class Silent(torch.autograd.Function):
    """A function whose backward pass drops its graph, without a word."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient.detach()


@pytest.mark.parametrize("function", [Once, Silent])
def test_what_cannot_be_differentiated_twice_is_told(function):
    class Own(Residual):
        def forward(self, x):
            return self.last(function.apply(torch.tanh(self.first(x))))

    x, y = regression()
    gradients_alone(made(Own), x, y, "")


def test_large_networks_see_gradients_alone(monkeypatch):
    monkeypatch.setattr(curved_module, "MOST_PARAMETERS", 10)
    x, y = regression()
    losses, optimizer = train(made(Residual), "lstm_whitened", x, y, 5)
    assert "parameters are more than 10" in optimizer.steppers[0].report()
    assert losses[-1] < losses[0]
    monkeypatch.undo()
    monkeypatch.setattr(curved_module, "MOST_LAYERS", 2)
    _, optimizer = train(made(Residual), "lstm_whitened", x, y, 2)
    assert "3 layers are more than 2" in optimizer.steppers[0].report()


def test_a_batch_that_takes_too_much_work_is_told(monkeypatch):
    monkeypatch.setattr(curved_module, "MOST_WORK", 1e4)
    x, y = regression()
    gradients_alone(made(Residual), x, y, "products on this batch, more than 1e+04")


def test_work_grows_with_samples_and_counts_convolutions_more():
    """Of a pass: products of weights and inputs."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 2, 2))
    names = [name for name, _ in model.named_parameters()]
    seen = SeenModule(model, layout_of(model, names))
    for samples in (5, 10):
        record = ForwardRecord((torch.randn(samples, 4),), {})
        work = seen.passed(record, list(model.parameters())).work
        assert work == samples * (3 * 4 + SLOW * 2 * 2 * 2)


def test_frozen_parameters_stay():
    model, (x, y) = made(Residual), regression()
    model.second.weight.requires_grad_(False)
    before = model.second.weight.clone()
    losses, _ = train(model, "lstm_whitened", x, y, 20)
    assert torch.equal(model.second.weight, before)
    assert losses[-1] < 1e-3 * losses[0]


def test_parameters_without_a_gradient_stay():
    class Spare(Residual):
        def __init__(self):
            super().__init__()
            self.spare = nn.Linear(4, 4)

    model, (x, y) = made(Spare), regression()
    before = model.spare.weight.clone()
    losses, _ = train(model, "lstm_whitened", x, y, 20)
    assert torch.equal(model.spare.weight, before)
    assert losses[-1] < 1e-3 * losses[0]


def test_a_batch_norm_counts_its_batches_once():
    model = made(convolutional)
    x, y = images()
    train(model, "lstm_whitened", x, y, 7, F.cross_entropy)
    assert model[1].num_batches_tracked == 7


def test_the_same_seed_gives_the_same_numbers():
    x, y = images()
    runs = [train(made(convolutional), "lstm_whitened", x, y, 8, F.cross_entropy)[0] for _ in "12"]
    assert runs[0] == runs[1]


def test_the_unit_of_the_loss_matters_in_the_first_step_alone():
    """Before the same batch has come twice it is not known."""
    x, y = (own.double() for own in regression())
    one, other = (
        train(
            made(Residual).double(),
            "lstm_whitened",
            x,
            y,
            12,
            lambda f, y, s=s: s * F.mse_loss(f, y),
        )[0]
        for s in (1.0, 1000.0)
    )
    assert other[0] == pytest.approx(1000 * one[0])
    assert one[-1] < 1e-4 * one[0]
    assert other[-1] < 1e-4 * other[0]
