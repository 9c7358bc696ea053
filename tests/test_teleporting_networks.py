"""``TeleportingOptimizer`` around a user's networks: sites, policy, buffers, torch's own habits."""

import copy
import io

import pytest
import torch
from torch import nn

from metaopt import TeleportingOptimizer, UserError
from metaopt.optim.subject import Batch
from metaopt.symmetry import RescalingAction
from metaopt.symmetry.search import GradientAscent

BASES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
}
POLICIES = ("keep", "reset", "transport")
LOSS = nn.CrossEntropyLoss()
QUICK = GradientAscent(iterations=2, size=0.3)


def seeded(build):
    torch.manual_seed(0)
    return build()


def mlp(dtype=torch.float64) -> nn.Module:
    layers = nn.Linear(9, 7), nn.LeakyReLU(0.1), nn.Linear(7, 6), nn.LeakyReLU(0.1)
    return seeded(lambda: nn.Sequential(*layers, nn.Linear(6, 3)).to(dtype))


def convolutional() -> nn.Module:
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Dropout(0.2), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 3),
        ).double()
    )  # fmt: skip


def data(samples: int = 5, *shape: int, seed: int = 1, dtype=torch.float64) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, *(shape or (9,)), generator=generator, dtype=dtype)
    return Batch(x, torch.arange(samples) % 3)


def norm(model: nn.Module, batch: Batch) -> float:
    gradients = torch.autograd.grad(LOSS(model(batch.x), batch.y), list(model.parameters()))
    return sum(g.square().sum().item() for g in gradients)


def train(model: nn.Module, optimizer, batches, **options) -> None:
    for batch in batches:
        optimizer.zero_grad()
        LOSS(model(batch.x), batch.y).backward()
        optimizer.step(**dict.fromkeys(options, batch))


@pytest.mark.parametrize("buffers", POLICIES)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("action", ["auto", "post_activation", "pre_activation", "rescaling"])
def test_a_teleport_keeps_the_output_raises_the_gradient_norm_and_training_goes_on(
    action, base, buffers
):
    model, batch = mlp(), data()
    optimizer = TeleportingOptimizer(
        BASES[base](model.parameters()), model, LOSS, action, search=QUICK, buffers=buffers
    )
    train(model, optimizer, [batch] * 3)
    before, start = model(batch.x).detach(), norm(model, batch)
    move = optimizer.teleport(*batch)
    torch.testing.assert_close(model(batch.x).detach(), before, rtol=1e-7, atol=1e-9)
    assert norm(model, batch) > 1.01 * start
    assert move.defect() < 1e-8
    assert not move.refused
    train(model, optimizer, [batch] * 3)
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("action", ["auto", "rescaling"])
def test_rescaling_keeps_the_output_on_fresh_data(action):
    model, batch = convolutional(), data(8, 1, 6, 6)
    model.train()
    running = copy.deepcopy(dict(model.named_buffers()))
    optimizer = TeleportingOptimizer(
        BASES["adam"](model.parameters()), model, LOSS, action, search=QUICK
    )
    move = optimizer.teleport(*batch)
    assert all(torch.equal(buffer, running[name]) for name, buffer in model.named_buffers())
    assert model.training
    assert not torch.equal(move.before[0], move.after[0])
    fresh = data(20, 1, 6, 6, seed=2).x
    assert move.defect(fresh) < 1e-12


def test_auto_takes_rescaling_where_it_can_else_gl_where_it_is_exact_for_the_batch():
    """Eq. 79 needs at most 7 + 1 and 6 + 1 samples; Tanh has no inverse for eq. 78."""
    model = mlp()
    optimizer = TeleportingOptimizer(BASES["sgd"](model.parameters()), model, LOSS)
    assert isinstance(optimizer.subject.chosen(data(5).x), RescalingAction)


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(mlp(), nn.Flatten(0)),
        lambda: nn.Sequential(mlp(torch.float32), nn.Softmax(1)),
    ],
    ids=["one dimension", "float32"],
)
def test_defects_of_outputs_of_any_shape(build):
    model = build()
    dtype = next(model.parameters()).dtype
    optimizer = TeleportingOptimizer(
        BASES["sgd"](model.parameters()), model, lambda out, y: out.square().sum(), search=QUICK
    )
    assert optimizer.teleport(data(8).x.to(dtype), data(8).y).defect() < 1e-5


class Stubborn(nn.Module):
    """Casts its input, and may return a dict."""

    def __init__(self, named: bool) -> None:
        super().__init__()
        self.layers, self.named = mlp(torch.float32), named

    def forward(self, x):
        out = self.layers(x.float())
        return {"logits": out} if self.named else out


def test_a_forward_that_insists_on_a_dtype_is_judged_in_it():
    model = Stubborn(named=False)
    optimizer = TeleportingOptimizer(BASES["sgd"](model.parameters()), model, LOSS, search=QUICK)
    assert optimizer.teleport(*data(8)).defect() < 1e-5


def test_an_output_that_is_no_tensor_is_refused_in_one_line_and_nothing_moves():
    model = Stubborn(named=True)
    start = copy.deepcopy(model.state_dict())
    optimizer = TeleportingOptimizer(
        BASES["sgd"](model.parameters()), model, lambda out, y: LOSS(out["logits"], y),
        action="rescaling", search=QUICK,
    )  # fmt: skip
    with pytest.raises(UserError, match="output is one tensor, got dict"):
        optimizer.teleport(*data(8))
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())


def test_an_undone_teleport_leaves_the_gradient_that_was_there():
    model, batch = mlp(), data(20)
    optimizer = TeleportingOptimizer(
        BASES["sgd"](model.parameters()), model, LOSS, "pre_activation", schedule=(0,),
        search=GradientAscent(iterations=3, size=0.5), max_defect=1e-9,
    )  # fmt: skip
    for _ in range(4):
        LOSS(model(batch.x), batch.y).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    optimizer.step(batch=batch)
    assert optimizer.undone == 1
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_sites_can_be_given_and_the_report_names_what_is_left_out():
    model = mlp()
    optimizer = TeleportingOptimizer(
        BASES["sgd"](model.parameters()), model, LOSS, sites=[("0", "2")], search=QUICK
    )
    last = model[4].weight.detach().clone()
    optimizer.teleport(*data(20))
    assert torch.equal(model[4].weight, last)
    report = optimizer.report()
    assert "0 -> 2" in report
    assert "2, 4: it is not among the given sites" in report
    assert "Teleports undone: 0" in report


def test_a_move_with_too_large_a_defect_is_undone_and_counted():
    model, batch = mlp(), data(20)  # eq. 79 is not exact for 20 samples
    start = copy.deepcopy(model.state_dict())
    optimizer = TeleportingOptimizer(
        BASES["momentum"](model.parameters()), model, LOSS, "pre_activation",
        search=GradientAscent(iterations=3, size=0.5), max_defect=1e-9,
    )  # fmt: skip
    move = optimizer.teleport(*batch)
    assert optimizer.undone == 1
    assert move.held
    assert move.defect() == 0
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())
    held_out = TeleportingOptimizer(
        BASES["momentum"](model.parameters()), model, LOSS, "post_activation", search=QUICK
    )
    held_out.max_defect = 1e-9
    held_out.teleport(*data(5), held_out=data(30, seed=3).x)
    assert held_out.undone == 1, "exact on its batch, and not on other data"


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


def test_buffers_that_nobody_knows_are_not_transported():
    model = mlp()
    optimizer = TeleportingOptimizer(
        torch.optim.Adadelta(model.parameters()), model, LOSS, buffers="transport", search=QUICK
    )
    train(model, optimizer, [data()])
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    with pytest.raises(UserError, match=r"acc_delta.*use buffers='keep' or 'reset'"):
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
    assert move.defect() < {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 0.05)
    assert all(p.dtype == dtype for p in model.parameters())


def test_frozen_layers_stay_and_are_reported():
    model = mlp()
    model[0].requires_grad_(False)
    optimizer = TeleportingOptimizer(BASES["sgd"](model.parameters()), model, LOSS, search=QUICK)
    first = model[0].weight.clone()
    optimizer.teleport(*data(20))
    assert torch.equal(model[0].weight, first)
    assert "frozen" in optimizer.report()
