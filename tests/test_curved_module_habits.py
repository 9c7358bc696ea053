"""What users do with networks that are no chain: m1 sees their curvature, or says why not."""

import warnings

import pytest
import torch
from curved_cases import regression
from torch import nn
from torch.nn import functional as F

import metaopt
from metaopt.learned.doubles import Doubles
from metaopt.learned.module_pass import ModulePass


class Residual(nn.Module):
    """A skip, with what a subclass makes of the output."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 12), nn.Linear(12, 12), nn.Linear(12, 2)

    def hidden(self, x):
        h = torch.tanh(self.first(x))
        return h + torch.tanh(self.second(h))

    def forward(self, x):
        return self.last(self.hidden(x))


def train(build, steps=15, loss_fn=None, before_step=None):
    torch.manual_seed(0)
    model, (x, y) = build(), regression()
    optimizer = metaopt.LearnedOptimizer(model, "lstm_update_tele")
    losses = []
    for number in range(steps):
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y) if loss_fn is None else loss_fn(model, x, y)
        loss.backward()
        if before_step is not None:
            before_step(model, number)
        optimizer.step()
        losses.append(loss.item())
    return model, losses, optimizer.steppers[0].report()


def test_a_parameter_may_be_a_number():
    class Scaled(Residual):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.0))

        def forward(self, x):
            return self.scale * super().forward(x)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, losses, report = train(Scaled)
    assert losses[-1] < 1e-6 * losses[0]
    assert model.scale != 1
    assert "it did in 14 steps, and saw gradients alone in 1" in report


class Features(Residual):
    def forward(self, x):
        h = self.hidden(x)
        return h, self.last(h)


class Unused(Residual):
    def forward(self, x):
        return self.first(x), self.last(self.hidden(x))


@pytest.mark.parametrize("build", [Features, Unused])
def test_the_output_is_the_one_that_the_loss_is_of(build):
    """Another output may come before it, and have a gradient through it."""
    _, losses, _ = train(build, loss_fn=lambda model, x, y: F.mse_loss(model(x)[1], y))
    assert losses[-1] < 1e-6 * losses[0]


def test_a_loss_of_two_outputs_is_told():
    class Heads(Residual):
        def __init__(self):
            super().__init__()
            self.other = nn.Linear(12, 2)

        def forward(self, x):
            h = self.hidden(x)
            return self.last(h), self.other(h)

    def of_both(model, x, y):
        one, other = model(x)
        return F.mse_loss(one, y) + F.mse_loss(other, 2 * y)

    with pytest.warns(UserWarning, match="its loss is not of one output alone"):
        _, losses, report = train(Heads, loss_fn=of_both)
    assert "its loss is not of one output alone" in report
    assert losses[-1] < 0.9 * losses[0]


def test_steps_without_an_output_are_counted():
    class Loss(Residual):
        def forward(self, x, y):
            return F.mse_loss(super().forward(x), y)

    _, losses, report = train(Loss, loss_fn=lambda model, x, y: model(x, y))
    assert losses[-1] < losses[0]
    assert "it did in 0 steps, and saw gradients alone in 15" in report


class InFloat(Residual):
    def forward(self, x):
        assert x.dtype == torch.float32
        return super().forward(x)


class NoSecond(Residual):
    """It fails in the second of the calls in float64."""

    calls = 0

    def forward(self, x):
        if x.dtype == torch.float64:
            NoSecond.calls += 1
            if NoSecond.calls > 1:
                raise KeyError("called again")
        return super().forward(x)


@pytest.mark.parametrize("build", [InFloat, NoSecond])
def test_what_a_forward_raises_is_told(build):
    NoSecond.calls = 0
    with pytest.warns(UserWarning, match="m1 sees gradients alone") as caught:
        _, losses, _ = train(build)
    assert len(caught) == 1
    assert losses[-1] < losses[0]


def test_an_error_within_a_step_is_told(monkeypatch):
    def fails(self, loss, step):
        raise RuntimeError("no memory is left\nof it")

    monkeypatch.setattr(ModulePass, "curvatures", fails)
    with pytest.warns(UserWarning, match="RuntimeError: no memory is left: steps"):
        _, losses, report = train(Residual)
    assert "no memory is left" in report
    assert losses[-1] < losses[0]


def test_a_layer_may_be_replaced():
    def without(model, number):
        if number == 4:
            model.second = nn.Identity()

    with pytest.warns(UserWarning, match="m1 sees gradients alone"):
        _, losses, _ = train(Residual, before_step=without)
    assert losses[-1] < losses[0]


def test_what_a_module_keeps_is_of_the_users_own_calls():
    class Keeping(Residual):
        def __init__(self):
            super().__init__()
            self.cache, self.features, self.count = {}, [], torch.zeros(2)
            self.directions = torch.randn(4, 4)

        def forward(self, x):
            found = super().forward(x @ self.directions)  # a tensor that is no buffer
            self.cache["last"] = found.detach()
            self.features.append(found.detach())
            self.count.add_(1)
            return found

    model, losses, _ = train(Keeping)
    assert losses[-1] < 1e-6 * losses[0]
    assert model.cache["last"].dtype == model.directions.dtype == torch.float32
    assert len(model.features) == 15
    assert all(own.dtype == torch.float32 for own in model.features)
    assert model.count.tolist() == [15, 15]


@pytest.mark.parametrize("most", [0.01, 0.1])
def test_clipped_entries_raise_no_loss(most):
    def clip(model, number):
        nn.utils.clip_grad_value_(model.parameters(), most)

    _, losses, _ = train(Residual, steps=30, before_step=clip)
    assert max(losses) <= 1.05 * losses[0]
    assert losses[-1] < 0.8 * losses[0]


class Zeros(Residual):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(4, 4)

    def forward(self, x):
        return super().forward(self.cell(x, torch.zeros(len(x), 4)))


class Cast(Residual):
    def forward(self, x):
        h = self.hidden(x.to(torch.float32))
        h = h.float() * torch.rsqrt(h.to(dtype=torch.float32).square().mean(-1, keepdim=True))
        return self.last(h.float())


class Mixed(Residual):
    def __init__(self):
        super().__init__()
        self.last.bfloat16()

    def forward(self, x):
        return self.last(self.hidden(x).bfloat16()).float()


@pytest.mark.parametrize(("build", "least"), [(Zeros, 1e-3), (Cast, 1e-6), (Mixed, 0.1)])
def test_dtypes_may_be_written_into_the_forward(build, least):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, losses, report = train(build, 20)
    assert "it did in 19 steps" in report
    assert losses[-1] < least * losses[0]


def test_doubles_end_with_their_block():
    with Doubles():
        x = torch.zeros(2, dtype=torch.float16)
        assert torch.softmax(x, 0, dtype=torch.float32).dtype == torch.float64
        assert x.float().dtype == x.to(torch.bfloat16).dtype == torch.float64
        assert torch.tensor(1).dtype == torch.int64
    assert torch.zeros(2).dtype == x.float().dtype == torch.float32
