"""Balance under mixed precision: autocast, and weights of bfloat16 with float32 copies."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metaopt
from metaopt import TeleportingOptimizer
from metaopt.symmetry import GradientAscent, LevelSetTeleport

torch.set_num_threads(1)


def network() -> nn.Module:
    """Layers of unequal scale, so that a balance moves them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.Linear(7, 3))
    with torch.no_grad():
        model[0].weight.mul_(5)
        model[3].weight.mul_(3)
    return model


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(9, 6, generator=generator), torch.randn(9, 3, generator=generator)


class WithMasters(torch.optim.Optimizer):
    """SGD with momentum that steps float32 copies and writes them into bfloat16 weights."""

    def __init__(self, parameters: Any, lr: float, at_once: bool = False) -> None:
        super().__init__(parameters, {"lr": lr})
        for group in self.param_groups if at_once else ():
            for p in group["params"]:
                self.state[p]["master_param"] = p.detach().float()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if "master_param" not in state:
                    state["master_param"] = p.detach().float()
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p, dtype=torch.float32)
                state["momentum_buffer"].mul_(0.9).add_(p.grad.float())
                state["master_param"].add_(state["momentum_buffer"], alpha=-group["lr"])
                p.copy_(state["master_param"])


def gradients_of(model: nn.Module) -> None:
    x, y = batch()
    model.zero_grad()
    nn.functional.mse_loss(model(x.to(model[0].weight.dtype)).float(), y).backward()


def test_autocast_with_float32_weights_is_balanced_at_each_step() -> None:
    model, (x, y) = network(), batch()
    base = torch.optim.AdamW(model.parameters(), 1e-3)
    optimizer = TeleportingOptimizer(base, model, search="balance", schedule=1)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.mse_loss(model(x).float(), y)
        loss.backward()
        before = copy.deepcopy(model)
        optimizer.step()
        losses.append(loss.item())
    assert optimizer.made == 5
    assert losses[-1] < losses[0]
    assert all(p.dtype == torch.float32 for p in model.parameters())
    metaopt.balance(before)
    assert (before(x) - model(x)).norm() < 0.1 * model(x).norm()


def float32_of(model: nn.Module, base: torch.optim.Optimizer) -> nn.Module:
    """The network of the float32 copies."""
    wide = copy.deepcopy(model).float()
    with torch.no_grad():
        for own, p in zip(wide.parameters(), model.parameters(), strict=True):
            own.copy_(base.state[p]["master_param"])
    return wide


@pytest.mark.parametrize("buffers", ["transport", "keep"])
def test_float32_copies_of_the_weights_move_and_the_weights_are_their_roundings(
    buffers: str,
) -> None:
    model = network().bfloat16()
    base = WithMasters(model.parameters(), 1e-2)
    optimizer = TeleportingOptimizer(base, model, search="balance", buffers=buffers)
    gradients_of(model)
    base.step()
    before, x = float32_of(model, base), batch()[0]
    squares = sum(float(p.detach().square().sum()) for p in before.parameters())
    optimizer.teleport()
    after = float32_of(model, base)
    assert optimizer.made == 1
    assert sum(float(p.detach().square().sum()) for p in after.parameters()) < 0.9 * squares
    # To float32's rounding, which bfloat16 weights alone could not keep.
    assert (after(x) - before(x)).norm() < 1e-5 * before(x).norm()
    for p in model.parameters():
        assert torch.equal(p, base.state[p]["master_param"].bfloat16())


def test_training_of_copies_follows_that_of_a_float32_network() -> None:
    model = network().bfloat16()
    wide = copy.deepcopy(model).float()
    base = WithMasters(model.parameters(), 1e-3)
    optimizer = TeleportingOptimizer(base, model, search="balance", schedule=1)
    plain = torch.optim.SGD(wide.parameters(), 1e-3, momentum=0.9)
    twin = TeleportingOptimizer(plain, wide, search="balance", schedule=1)
    x, y = batch()
    for _ in range(8):
        for own in (model, wide):
            gradients_of(own)
        optimizer.step()
        twin.step()
    assert optimizer.made == twin.made == 7
    losses = [nn.functional.mse_loss(m(x), y).item() for m in (float32_of(model, base), wide)]
    assert losses[1] < 2.5
    assert losses[0] == pytest.approx(losses[1], rel=0.01)  # gradients come from bfloat16


@pytest.mark.parametrize("at_once", [False, True])
def test_copies_are_made_anew_at_a_reset(at_once: bool) -> None:
    model = network().bfloat16()
    base = WithMasters(model.parameters(), 1e-2, at_once)
    optimizer = TeleportingOptimizer(base, model, search="balance", buffers="reset")
    gradients_of(model)
    base.step()
    optimizer.teleport()
    for p in list(model.parameters())[:-1]:  # the last bias stays as it is
        copied = base.state.get(p, {}).get("master_param")
        assert (copied is not None) == at_once
        if copied is not None:
            assert copied.dtype == torch.float32
            assert torch.equal(copied, p.float())
    gradients_of(model)
    base.step()


@pytest.mark.parametrize("search", [GradientAscent(), LevelSetTeleport()])
def test_other_searches_move_the_copies_too(search: Any) -> None:
    model = network().bfloat16()
    base = WithMasters(model.parameters(), 1e-2)
    loss_fn = nn.functional.mse_loss
    optimizer = TeleportingOptimizer(base, model, loss_fn, search=search)
    gradients_of(model)
    base.step()
    x, y = (value.bfloat16() for value in batch())
    start = [p.detach().clone() for p in model.parameters()]
    optimizer.teleport(x, y)
    if optimizer.made:
        assert not all(map(torch.equal, start, model.parameters()))
    for p in model.parameters():
        assert torch.equal(p, base.state[p]["master_param"].bfloat16())


def test_a_float32_copy_of_the_whole_model_is_trained_as_any_other() -> None:
    """Where the copies are a model of their own, that one is the model to balance."""
    model = network().bfloat16()
    wide = copy.deepcopy(model).float()
    base = torch.optim.AdamW(wide.parameters(), 1e-2)
    optimizer = TeleportingOptimizer(base, wide, search="balance", schedule=1)
    for _ in range(4):
        gradients_of(model)
        for own, p in zip(wide.parameters(), model.parameters(), strict=True):
            assert p.grad is not None
            own.grad = p.grad.float()
        optimizer.step()
        with torch.no_grad():
            for own, p in zip(wide.parameters(), model.parameters(), strict=True):
                p.copy_(own)
    assert optimizer.made == 3


def test_an_optimizer_of_other_tensors_than_the_model_holds_is_refused() -> None:
    model = network().bfloat16()
    copies = [nn.Parameter(p.detach().float()) for p in model.parameters()]
    with pytest.raises(metaopt.UserError, match="expected a base optimizer that holds the model's"):
        TeleportingOptimizer(torch.optim.SGD(copies, 0.1), model, search="balance")
