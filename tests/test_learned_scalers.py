"""``LearnedOptimizer`` under ``torch.amp.GradScaler``, with clipping and without."""

import copy

import pytest
import torch
from learned_network_cases import batch_for, conv_net, distance, equal, made, mlp, train
from torch import nn
from torch.nn import functional as F

NETWORKS = pytest.mark.parametrize("make", [mlp, conv_net])


def amp(model, optimizer, batches, scaler, clip=None, loss_fn=F.mse_loss) -> None:
    for x, y in batches:
        optimizer.zero_grad()
        scaler.scale(loss_fn(model(x), y)).backward()
        if clip is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()


SCALED = {
    "loss_fn": (nn.MSELoss(), None),
    "loss_fn, clipped": (nn.MSELoss(), 0.3),
    "measured": (None, None),
}


@pytest.mark.parametrize(("loss_fn", "clip"), SCALED.values(), ids=SCALED)
@NETWORKS
def test_scaled_gradients_walk_the_same_trajectory(make, loss_fn, clip):
    (model, optimizer, one), (twin, other, _) = (made(make, loss_fn=loss_fn) for _ in range(2))
    amp(model, optimizer, [one] * 8, torch.amp.GradScaler("cpu", growth_interval=3), clip)
    amp(twin, other, [one] * 8, torch.amp.GradScaler("cpu", enabled=False), clip)
    assert distance(model, twin) < 1e-6


@NETWORKS
def test_unscaled_by_the_user_the_curvature_is_not_measured_and_steps_stay_sound(make):
    model, optimizer, (x, y) = made(make)
    amp(model, optimizer, [(x, y)] * 8, torch.amp.GradScaler("cpu"), clip=1.0)
    assert optimizer.learned_state["curvature"] == [0.0]
    assert optimizer.skipped == 0
    assert all(p.isfinite().all() for p in model.parameters())


@NETWORKS
@pytest.mark.parametrize("clip", [None, 1.0])
def test_the_scaler_skips_a_step_with_an_infinite_gradient_and_training_goes_on(make, clip):
    ends = []
    for skipping in (False, True):
        model, optimizer, one = made(make)
        model.eval()
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        amp(model, optimizer, [one] * 2, scaler, clip)
        if skipping:
            before, other = copy.deepcopy(model), batch_for(make, 5, 2, torch.float64)
            amp(
                model, optimizer, [other], scaler, clip, lambda o, y: 1e308 * 1e3 * F.mse_loss(o, y)
            )
            assert equal(model, before)
            assert scaler.get_scale() == 512.0
        amp(model, optimizer, [one] * 2, scaler, clip)
        ends.append(model)
    assert distance(*ends) < 1e-9


@NETWORKS
def test_clipped_gradients_are_what_is_stepped_on(make):
    (model, optimizer, (x, y)), (twin, other, _) = made(make), made(make)
    for _ in range(3):
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        nn.utils.clip_grad_value_(model.parameters(), 0.01)
        optimizer.step()
    train(twin, other, [(x, y)] * 3)
    assert all(p.grad.abs().max() <= 0.01 for p in model.parameters())
    assert distance(model, twin) > 1e-6


def test_only_a_scaler_is_told_that_it_says_its_scale():
    """Lightning, which asks the same, clips no gradients of an optimizer that answers yes."""
    model, optimizer, (x, y) = made(mlp)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(F.mse_loss(model(x), y)).backward()
    told = []
    optimizer.step = lambda: told.append((float(optimizer.grad_scale), bool(optimizer.found_inf)))
    assert not getattr(optimizer, "_step_supports_amp_scaling", False)
    scaler.step(optimizer)
    assert told == [(scaler.get_scale(), False)]
