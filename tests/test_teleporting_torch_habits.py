"""``TeleportingOptimizer`` around networks: schedules, buffers, torch's own habits."""

import copy
import io

import pytest
import torch
from teleporting_cases import BASES, LOSS, QUICK, data, mlp, train
from torch import nn

from metaopt import LearnedOptimizer, TeleportingOptimizer, UserError
from metaopt.target import Batch


@pytest.mark.parametrize("base", BASES)
def test_never_teleporting_equals_the_base_bit_for_bit(base):
    batches = [data(6, seed=s) for s in range(8)]
    model, plain = mlp(torch.float32), mlp(torch.float32)
    batches = [Batch(b.x.float(), b.y) for b in batches]
    train(model, TeleportingOptimizer(BASES[base](model.parameters()), model, LOSS), batches)
    train(plain, BASES[base](plain.parameters()), batches)
    for own, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [(None, []), (3, [3, 6]), ((0, 4), [0, 4]), (lambda step: step == 5, [5])],
)
def test_schedules(schedule, expected):
    model, moved = mlp(), []
    optimizer = TeleportingOptimizer(
        BASES["sgd"](model.parameters()), model, LOSS, schedule=schedule, search=QUICK
    )
    for step in range(8):
        train(model, optimizer, [data(6, seed=step)], batch=True)
        if optimizer.teleportation is not None:
            moved.append(step)
    assert moved == expected


def test_a_scheduled_step_takes_the_gradient_at_the_new_point():
    model, batch = mlp(), data()
    optimizer = TeleportingOptimizer(
        BASES["sgd"](model.parameters()), model, LOSS, schedule=(0,), search=QUICK
    )
    train(model, optimizer, [batch], batch=True)
    twin = mlp()
    other = TeleportingOptimizer(BASES["sgd"](twin.parameters()), twin, LOSS, search=QUICK)
    other.teleport(*batch)
    train(twin, other, [batch])
    for own, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-12, atol=0)
    with pytest.raises(UserError, match=r"expected batch=\(x, y\) at a step that teleports"):
        TeleportingOptimizer(BASES["sgd"](model.parameters()), model, LOSS, schedule=(0,)).step()


def test_a_gradient_transported_is_the_gradient_at_the_new_point():
    """Under rescaling the loss at exp(t) . w is that at w, so its gradient is exp(-t) times it."""
    model, batch = mlp(), data()
    optimizer = TeleportingOptimizer(
        BASES["momentum"](model.parameters()), model, LOSS, "rescaling", search=QUICK,
        buffers="transport",
    )  # fmt: skip
    LOSS(model(batch.x), batch.y).backward()
    optimizer.base.param_groups[0]["lr"] = 0.0  # only the momentum takes the gradient
    optimizer.step()
    optimizer.teleport(*batch)
    gradients = torch.autograd.grad(LOSS(model(batch.x), batch.y), list(model.parameters()))
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        momentum = optimizer.base.state[parameter]["momentum_buffer"]
        torch.testing.assert_close(momentum, gradient, rtol=1e-9, atol=1e-12)


def test_squares_transported_are_squares_of_the_gradient_at_the_new_point():
    model, batch = mlp(), data()
    optimizer = TeleportingOptimizer(
        torch.optim.Adagrad(model.parameters(), lr=0.0), model, LOSS, "rescaling", search=QUICK,
        buffers="transport",
    )  # fmt: skip
    LOSS(model(batch.x), batch.y).backward()
    optimizer.step()
    optimizer.teleport(*batch)
    gradients = torch.autograd.grad(LOSS(model(batch.x), batch.y), list(model.parameters()))
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        sums = optimizer.base.state[parameter]["sum"]
        torch.testing.assert_close(sums, gradient.square(), rtol=1e-9, atol=1e-14)


class Foreign(torch.optim.SGD):
    """Makes a buffer of its own at its first step."""

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["slow"] = parameter.detach().clone()
        return super().step(closure)


@pytest.mark.parametrize(
    ("base", "buffer"),
    [
        (torch.optim.Adadelta, "acc_delta"), (torch.optim.NAdam, "mu_product"),
        (torch.optim.LBFGS, "old_dirs"), (torch.optim.Adamax, "exp_inf"),
        (torch.optim.ASGD, "ax"), (torch.optim.Rprop, "prev"), (torch.optim.Adafactor, "row_var"),
        (type("Own", (torch.optim.NAdam,), {}), "mu_product"),
        (lambda p: LearnedOptimizer(p, "lstm_layerwise"), "LSTM"),
    ],
)  # fmt: skip
def test_an_optimizer_with_buffers_that_nobody_can_transport_is_refused_at_once(base, buffer):
    model = mlp()
    with pytest.raises(UserError, match=rf"{buffer}.*use buffers='keep' or 'reset'"):
        TeleportingOptimizer(base(model.parameters()), model, LOSS, buffers="transport")


@pytest.mark.parametrize("base", [torch.optim.RAdam, torch.optim.AdamW, torch.optim.Adagrad])
def test_the_table_of_buffers_knows_all_that_the_others_have(base):
    model = mlp()
    optimizer = TeleportingOptimizer(
        base(model.parameters()), model, LOSS, buffers="transport", search=QUICK
    )
    train(model, optimizer, [data()] * 2)
    assert not optimizer.teleport(*data()).stayed


def test_buffers_that_nobody_knows_are_not_transported():
    model = mlp()
    optimizer = TeleportingOptimizer(
        Foreign(model.parameters(), 0.1), model, LOSS, buffers="transport", search=QUICK
    )
    train(model, optimizer, [data()])
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    with pytest.raises(UserError, match=r"'slow' of Foreign.*use buffers='keep' or 'reset'"):
        optimizer.teleport(*data())
    assert str((model.state_dict(), optimizer.state_dict())) == str(before)


@pytest.mark.parametrize("base", BASES)
def test_twenty_steps_and_twenty_after_loading_equal_forty(base):
    def built():
        model = mlp()
        return model, TeleportingOptimizer(
            BASES[base](model.parameters()), model, LOSS, schedule=7, search=QUICK
        )

    batches = [data(6, seed=s) for s in range(40)]
    model, optimizer = built()
    train(model, optimizer, batches[:20], batch=True)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(model, optimizer, batches[20:], batch=True)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    kept = copy.deepcopy(saved)
    resumed, other = built()
    resumed.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    train(resumed, other, batches[20:], batch=True)
    assert str(saved) == str(kept)
    for own, expected in zip(resumed.parameters(), model.parameters(), strict=True):
        assert torch.equal(own, expected)


def test_deep_copies_schedulers_clipping_new_groups_and_scaling_work():
    model, batch = mlp(torch.float32), Batch(data().x.float(), data().y)
    extra = nn.Parameter(torch.zeros(3))
    optimizer = TeleportingOptimizer(
        BASES["adam"](model.parameters()), model, LOSS, schedule=2, search=QUICK
    )
    optimizer.add_param_group({"params": [extra], "lr": 0.5})
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    for _ in range(4):
        optimizer.zero_grad()
        scaler.scale(LOSS(model(batch.x) + extra, batch.y)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer, batch=batch)
        scaler.update()
        scheduler.step()
    assert optimizer.base.param_groups[1]["lr"] == 0.5 / 16
    assert extra.abs().max() > 0
    twin, copied = copy.deepcopy((model, optimizer))
    for own, stepper in ((model, optimizer), (twin, copied)):
        train(own, stepper, [batch] * 3, batch=True)
    for own, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_dtype_teleports_by_rescaling(dtype):
    model = mlp(dtype)
    batch = Batch(data(20).x.to(dtype), data(20).y)
    optimizer = TeleportingOptimizer(BASES["sgd"](model.parameters()), model, LOSS, search=QUICK)
    move = optimizer.teleport(*batch)
    assert move.invariance_error() < {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 0.05)
    assert all(p.dtype == dtype for p in model.parameters())


def test_frozen_layers_stay_and_are_reported():
    model = mlp()
    model[0].requires_grad_(False)
    optimizer = TeleportingOptimizer(BASES["sgd"](model.parameters()), model, LOSS, search=QUICK)
    first = model[0].weight.clone()
    optimizer.teleport(*data(20))
    assert torch.equal(model[0].weight, first)
    assert "frozen" in optimizer.report()


def test_a_state_of_the_base_alone_is_refused_with_what_to_do():
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.LeakyReLU(0.1), torch.nn.Linear(4, 2)
    )
    base = torch.optim.Adam(model.parameters())
    optimizer = TeleportingOptimizer(base, model, torch.nn.MSELoss(), schedule=[1])
    with pytest.raises(UserError, match=r"got one with state, param_groups: load .* the base"):
        optimizer.load_state_dict(base.state_dict())
