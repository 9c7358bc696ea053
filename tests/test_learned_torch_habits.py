"""``LearnedOptimizer`` on networks, as users of ``torch.optim`` expect an optimizer to be."""

import copy
import io

import pytest
import torch
from learned_network_cases import (
    batch_for,
    build,
    conv_net,
    equal,
    made,
    mlp,
    train,
    weights,
)
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler as schedulers

from metaopt import LearnedOptimizer, UserError

NETWORKS = pytest.mark.parametrize("make", [mlp, conv_net])
SHIPPED = pytest.mark.parametrize("name", ["lstm_update", "lstm_update_tele", "lstm_lr_tele"])


def through_a_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("keep", [copy.deepcopy, through_a_file], ids=["dict", "file"])
@NETWORKS
def test_twenty_steps_and_twenty_after_loading_equal_forty(make, keep):
    model, optimizer, one = made(make, lr=0.9)
    other = batch_for(make, 5, 2, torch.float64)
    batches = [one, one, other, one, one] * 8
    train(model, optimizer, batches[:20])
    saved = keep({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    train(model, optimizer, batches[20:])
    kept = copy.deepcopy(saved)
    resumed, loaded, _ = made(make)
    resumed.load_state_dict(saved["model"])
    loaded.load_state_dict(saved["optimizer"])
    train(resumed, loaded, batches[20:])
    assert equal(resumed, model)
    assert str(saved) == str(kept), "not changed, and not aliased"


@NETWORKS
def test_going_back_to_an_earlier_state_forgets_the_batches_between(make):
    model, optimizer, one = made(make)
    train(model, optimizer, [one] * 2)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, [one])
    expected = copy.deepcopy(model)
    train(model, optimizer, [batch_for(make, 6, 5, torch.float64)] * 2)
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    train(model, optimizer, [one])
    assert equal(model, expected)


@NETWORKS
def test_a_gradient_that_is_not_finite_skips_the_step_and_is_counted(make):
    ends = []
    for skipping in (False, True):
        model, optimizer, one = made(make)
        model.eval()  # a further pass in training mode would change the statistics of batch norm
        train(model, optimizer, [one] * 2)
        if skipping:
            other, before = batch_for(make, 5, 2, torch.float64), copy.deepcopy(model)
            train(model, optimizer, [other], lambda out, y: float("nan") * F.mse_loss(out, y))
            assert equal(model, before)
            assert optimizer.teleportation is None
        train(model, optimizer, [one] * 2)
        assert optimizer.skipped == int(skipping)
        assert f"not finite: {int(skipping)}" in optimizer.report()
        ends.append(model)
    assert equal(*ends)


def test_a_new_group_joins_mid_run_and_is_stepped_without_teleportation():
    model, optimizer, (x, y) = made(mlp, meta="lstm_update_tele")
    further = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    train(model, optimizer, [(x, y)] * 2)
    optimizer.add_param_group({"params": [further], "lr": 0.5})
    for _ in range(20):
        optimizer.zero_grad()
        F.mse_loss(model(x) + further, y + 1.0).backward()
        optimizer.step()
    assert (further > 0).all()
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.5]
    _, other, _ = made(mlp, meta="lstm_update_tele")
    other.add_param_group({"params": [further.detach().clone().requires_grad_()]})
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    assert [group["lr"] for group in other.param_groups] == [1.0, 0.5]


SCHEDULERS = {
    "StepLR": (lambda o: schedulers.StepLR(o, 3, gamma=0.5), lambda t: 0.5 ** (t // 3)),
    "LambdaLR": (lambda o: schedulers.LambdaLR(o, lambda t: 1 / (1 + t)), lambda t: 1 / (1 + t)),
}  # fmt: skip


@pytest.mark.parametrize(("scheduler", "rate"), SCHEDULERS.values(), ids=SCHEDULERS)
@NETWORKS
def test_a_scheduler_sets_the_factor_of_each_step(make, scheduler, rate):
    (model, optimizer, one), (twin, other, _) = made(make), made(make)
    schedule = scheduler(optimizer)
    for t in range(8):
        train(model, optimizer, [one])
        schedule.step()
        other.param_groups[0]["lr"] = rate(t)
        train(twin, other, [one])
    assert equal(model, twin)


@NETWORKS
@pytest.mark.parametrize("action", ["none", "rescaling", "auto"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_at_lr_0_nothing_moves(make, action, weight_decay):
    model, optimizer, one = made(make, lr=0.0, action=action, weight_decay=weight_decay)
    start = copy.deepcopy(model)
    train(model, optimizer, [one] * 5)
    assert equal(model, start)


@NETWORKS
def test_a_closure_runs_with_gradients_even_under_no_grad_and_its_loss_comes_back(make):
    (model, optimizer, (x, y)), (twin, other, _) = made(make), made(make)

    def closure():
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        return loss

    with torch.no_grad():
        losses = [optimizer.step(closure).item() for _ in range(5)]
    assert losses == train(twin, other, [(x, y)] * 5)
    assert equal(model, twin)


@SHIPPED
@pytest.mark.parametrize("frozen", [False, True], ids=["unused", "frozen later"])
def test_parameters_without_gradient_stay(name, frozen):
    model, one = conv_net(), batch_for(conv_net)
    if not frozen:
        model.add_module("unused", nn.Identity())
        model.unused.register_parameter("weight", nn.Parameter(torch.ones(5, 5)))
    optimizer = LearnedOptimizer(model, name, action="none")
    own = model[0].requires_grad_(False).weight if frozen else model.unused.weight
    start = own.detach().clone()
    train(model, optimizer, [one] * 10)
    assert torch.equal(own, start)


@NETWORKS
@SHIPPED
def test_frozen_layers_stay_and_the_others_do_not(make, name):
    model, one = make(), batch_for(make)
    model[0].requires_grad_(False)
    start = weights(model)
    train(model, LearnedOptimizer(model, name), [one] * 5)
    stayed = [torch.equal(a, b) for a, b in zip(start, weights(model), strict=True)]
    assert stayed == [not p.requires_grad for p in model.parameters()]


@NETWORKS
def test_weights_that_are_not_contiguous_are_trained_alike(make):
    (model, optimizer, one), (twin, _, _) = made(make), made(make)
    for parameter in twin.parameters():
        if parameter.dim() > 1:
            parameter.data = parameter.data.transpose(0, -1).contiguous().transpose(0, -1)
    other = LearnedOptimizer(twin, build())
    assert any(not p.is_contiguous() for p in twin.parameters())
    train(model, optimizer, [one] * 5)
    train(twin, other, [one] * 5)
    torch.testing.assert_close(twin(one[0]), model(one[0]), rtol=1e-6, atol=1e-6)
    assert any(not p.is_contiguous() for p in twin.parameters())


@NETWORKS
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_trained_and_kept(make, dtype):
    model, one = make(dtype=dtype), batch_for(make, 20, dtype=dtype)
    losses = train(model, LearnedOptimizer(model, "lstm_update_tele"), [one] * 40)
    assert min(losses[-3:]) < 0.9 * losses[0]
    assert all(p.dtype == dtype and p.isfinite().all() for p in model.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@NETWORKS
def test_a_state_saved_on_a_gpu_goes_on_there_after_loading_on_the_cpu(make):
    model, (x, y) = make().cuda(), batch_for(make)
    optimizer, one = LearnedOptimizer(model, build()), (x.cuda(), y.cuda())
    train(model, optimizer, [one] * 3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    optimizer.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    assert all(torch.isfinite(torch.tensor(train(model, optimizer, [one] * 3))))


def test_names_of_parameters_are_kept_in_the_state():
    model = mlp()
    optimizer = LearnedOptimizer(model.named_parameters(), build())
    train(model, optimizer, [batch_for(mlp)])
    names = [name for name, _ in model.named_parameters()]
    assert optimizer.param_groups[0]["param_names"] == names
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == names


@NETWORKS
def test_gradients_set_to_zero_are_as_good_as_none(make):
    ends = []
    for to_none in (False, True):
        model, optimizer, (x, y) = made(make)
        for _ in range(4):
            optimizer.zero_grad(set_to_none=to_none)
            F.mse_loss(model(x), y).backward()
            optimizer.step()
        ends.append(model)
    assert equal(*ends)


def test_an_optimizer_shows_its_groups_and_calls_its_hooks():
    model, optimizer, one = made(mlp, lr=0.25)
    assert repr(optimizer).startswith("LearnedOptimizer (")
    assert "lr: 0.25" in repr(optimizer)
    called = []
    optimizer.register_step_pre_hook(lambda *given: called.append("before"))
    handle = optimizer.register_step_post_hook(lambda own, *given: called.append(own))
    train(model, optimizer, [one])
    assert called == ["before", optimizer]
    handle.remove()
    train(model, optimizer, [one])
    assert called == ["before", optimizer, "before"]


FORMS = {
    "list": lambda m: list(m.parameters()),
    "generator": lambda m: m.parameters(),
    "named": lambda m: m.named_parameters(),
    "one group": lambda m: [{"params": m.parameters()}],
}


@pytest.mark.parametrize("form", FORMS)
def test_parameters_alone_come_in_any_form_that_torch_takes(form):
    models = mlp(), mlp()
    for model, given in zip(models, (FORMS["list"], FORMS[form]), strict=True):
        optimizer = LearnedOptimizer(given(model), "lstm_update_tele")
        losses = train(model, optimizer, [batch_for(mlp)] * 30)
        assert losses[-1] < losses[0]
        assert optimizer.teleportation is None
    assert equal(*models)


def test_the_lr_of_each_group_scales_its_step():
    steps = {}
    for lr in (1.0, 0.5):
        model, extra = mlp(dtype=torch.float64), nn.Parameter(torch.ones(3, dtype=torch.float64))
        optimizer = LearnedOptimizer(model, build(), lr=lr, action="none")
        optimizer.add_param_group({"params": [extra], "lr": lr**2})
        start = [*weights(model), extra.detach().clone()]
        x, y = batch_for(mlp, dtype=torch.float64)
        nn.functional.mse_loss(model(x) + extra, y).backward()
        optimizer.step()
        ends = [*weights(model), extra.detach()]
        steps[lr] = [end - at for end, at in zip(ends, start, strict=True)]
    for index, (half, whole) in enumerate(zip(steps[0.5], steps[1.0], strict=True)):
        factor = 0.5 if index < len(steps[1.0]) - 1 else 0.25
        torch.testing.assert_close(half, factor * whole, rtol=1e-9, atol=1e-14)
        assert whole.abs().max() > 0


@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize("name", ["lstm_update_tele", "lstm_layerwise"])
def test_a_state_of_another_kind_of_optimizer_is_refused(name, stepped):
    model = torch.nn.Linear(3, 2)
    adam = torch.optim.Adam(model.parameters())
    if stepped:
        model(torch.ones(4, 3)).sum().backward()
        adam.step()
    optimizer = LearnedOptimizer(model, name)
    with pytest.raises(UserError, match="an optimizer with betas, eps"):
        optimizer.load_state_dict(adam.state_dict())
    assert optimizer.param_groups[0]["lr"] == 1.0
