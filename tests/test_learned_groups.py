"""Groups, autocast and scaled gradients, of all learned optimizers that step any parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metaopt import list_pretrained
from metaopt.errors import UserError
from metaopt.learned.optimizer import LearnedOptimizer

LOOSE = ("lstm_layerwise", "lstm_layerwise_v1", "lstm_update")


def model_of(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def gradients(model: nn.Module, value: float = 1.0) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, value)


def change(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    return max(
        float((b - p.detach()).abs().max()) for b, p in zip(before, model.parameters(), strict=True)
    )


@pytest.mark.parametrize("name", LOOSE)
@pytest.mark.parametrize("first", [True, False])
def test_an_empty_group_is_stepped_as_torchs_do(name, first):
    model, alone = model_of(), model_of()
    groups = [{"params": list(model.parameters())}, {"params": []}]
    ordered = groups[::-1] if first else groups
    optimizer = LearnedOptimizer(ordered, name)
    usual = LearnedOptimizer(list(alone.parameters()), name)
    for _ in range(3):
        for own, stepping in ((model, optimizer), (alone, usual)):
            gradients(own)
            stepping.step()
    for one, other in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.equal(one, other)
    optimizer.add_param_group({"params": []})
    assert len(optimizer.param_groups) == 3
    again = LearnedOptimizer([*ordered, {"params": []}], name)
    again.load_state_dict(optimizer.state_dict())
    with pytest.raises(UserError, match="expected parameters that require a gradient, got none"):
        LearnedOptimizer([{"params": []}, {"params": []}], name)


@pytest.mark.parametrize("name", list_pretrained())
def test_a_step_in_an_autocast_block_is_one_outside(name):
    results = []
    for inside in (True, False):
        model = model_of()
        optimizer = LearnedOptimizer(model, name)
        torch.manual_seed(1)
        x, y = torch.randn(16, 6), torch.randn(16, 3)
        for _ in range(3):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            with torch.autocast("cpu", torch.bfloat16, enabled=inside):
                optimizer.step()
        results.append([p.detach().clone() for p in model.parameters()])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_scaled_gradients_of_float16_do_not_vanish():
    model = model_of(torch.float16)
    optimizer = LearnedOptimizer(model, "lstm_layerwise")
    optimizer.grad_scale = torch.tensor(65536.0)  # as GradScaler says it
    gradients(model, 2e-8 * 65536)
    assert change(model, optimizer) > 1e-5
