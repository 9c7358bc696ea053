"""``TeleportingOptimizer`` around a user's networks: sites, policy, buffers, torch's own habits."""

import copy

import pytest
import torch
from teleporting_cases import BASES, LOSS, POLICIES, QUICK, convolutional, data, mlp, norm, train
from torch import nn

from metaopt import TeleportingOptimizer, UserError
from metaopt.symmetry import GradientAscent


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
    assert move.invariance_error() < 1e-8
    assert not move.rejected
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
    assert move.invariance_error(fresh) < 1e-12


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(mlp(), nn.Flatten(0)),
        lambda: nn.Sequential(mlp(torch.float32), nn.Softmax(1)),
    ],
    ids=["one dimension", "float32"],
)
def test_invariance_errors_of_outputs_of_any_shape(build):
    model = build()
    dtype = next(model.parameters()).dtype
    optimizer = TeleportingOptimizer(
        BASES["sgd"](model.parameters()), model, lambda out, y: out.square().sum(), search=QUICK
    )
    assert optimizer.teleport(data(8).x.to(dtype), data(8).y).invariance_error() < 1e-5


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
    assert optimizer.teleport(*data(8)).invariance_error() < 1e-5


def test_an_output_without_real_numbers_is_refused_in_one_line_and_nothing_moves():
    class Classes(Stubborn):
        def forward(self, x):
            out = super().forward(x)
            return out if self.training else {"class": out["logits"].argmax(1)}

    model = Classes(named=True)
    start = copy.deepcopy(model.state_dict())
    optimizer = TeleportingOptimizer(
        BASES["sgd"](model.parameters()), model, lambda out, y: LOSS(out["logits"], y),
        action="rescaling", search=QUICK, max_defect=1e-3,
    )  # fmt: skip
    with pytest.raises(UserError, match="gives floating-point tensors, got dict"):
        optimizer.teleport(*data(8))
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())


def test_a_reverted_teleport_leaves_the_gradient_that_was_there():
    model, batch = mlp(), data(20)
    optimizer = TeleportingOptimizer(
        BASES["sgd"](model.parameters()), model, LOSS, "pre_activation", schedule=(0,),
        search=GradientAscent(iterations=3, initial_step=0.5), max_defect=1e-9,
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


def test_a_move_with_too_large_an_invariance_error_is_reverted_and_counted():
    model, batch = mlp(), data(20)  # eq. 79 is not exact for 20 samples
    start = copy.deepcopy(model.state_dict())
    optimizer = TeleportingOptimizer(
        BASES["momentum"](model.parameters()), model, LOSS, "pre_activation",
        search=GradientAscent(iterations=3, initial_step=0.5), max_defect=1e-9,
    )  # fmt: skip
    move = optimizer.teleport(*batch)
    assert optimizer.undone == 1
    assert move.reverted
    assert move.invariance_error() == 0
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())
    held_out = TeleportingOptimizer(
        BASES["momentum"](model.parameters()), model, LOSS, "post_activation", search=QUICK
    )
    held_out.max_defect = 1e-9
    held_out.teleport(*data(5), held_out=data(30, seed=3).x)
    assert held_out.undone == 1, "exact on its batch, and not on other data"
