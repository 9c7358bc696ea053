"""``LearnedOptimizer`` on ordinary modules: what it sees, which action it takes, what not."""

import copy

import pytest
import torch
from learned_network_cases import (
    Residual,
    batch,
    batch_for,
    build,
    conv_net,
    distance,
    equal,
    mlp,
    train,
)
from torch import nn

from metaopt import LearnedOptimizer, UserError


def seeded(make):
    torch.manual_seed(0)
    return make()


def frozen_first() -> nn.Module:
    model = mlp()
    model[0].requires_grad_(False)
    return model


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(9, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))


ZOO = {
    "leaky": (mlp, (6, 9)),
    "relu": (lambda: mlp(nn.ReLU()), (6, 9)),
    "tanh": (lambda: mlp(nn.Tanh()), (6, 9)),
    "gelu": (lambda: mlp(nn.GELU()), (6, 9)),
    "batch norm": (lambda: seeded(normed), (20, 9)),
    "residual": (lambda: seeded(Residual), (6, 9)),
    "convolutions": (conv_net, (20, 1, 6, 6)),
    "linear": (lambda: seeded(lambda: nn.Linear(9, 3)), (6, 9)),
    "one layer": (lambda: seeded(lambda: nn.Sequential(nn.Linear(9, 3))), (6, 9)),
    "frozen": (frozen_first, (6, 9)),
    "no biases": (lambda: mlp(bias=False), (6, 9)),
    "three dimensions": (mlp, (6, 4, 9)),
}
SHIPPED = [(name, "lstm_update_tele") for name in ZOO] + [
    (name, optimizer)
    for name in ("leaky", "residual")
    for optimizer in ("lstm_update", "lstm_lr_tele")
]


@pytest.mark.parametrize(("name", "optimizer"), SHIPPED)
def test_a_shipped_optimizer_lowers_the_full_batch_loss_of_any_network(name, optimizer):
    make, shape = ZOO[name]
    model, (x, y) = make(), batch(*shape)
    if len(shape) == 3:
        y = torch.randn(*shape[:-1], 3, generator=torch.Generator().manual_seed(2))
    losses = train(model, LearnedOptimizer(model, optimizer), [(x, y)] * 50)
    assert losses[-1] < 0.8 * losses[0]
    assert max(losses) < 1.5 * losses[0]
    assert all(p.isfinite().all() for p in model.parameters())


def counts(optimizer: LearnedOptimizer) -> dict[str, int]:
    """How often each action was taken, as the report says."""
    lines = [line.rpartition(": ") for line in optimizer.report().splitlines()]
    return {what.split(" (")[0]: int(n.split()[0]) for what, _, n in lines if n.endswith(" steps")}


GL, SCALE, REST = "post_activation", "rescaling", "no teleportation"
LEAKY, RELU, TANH = nn.LeakyReLU(0.1), nn.ReLU(), nn.Tanh()
POLICY = {  # activation, samples, whether the batch stays, action -> what is taken in 5 steps
    "auto": (LEAKY, 6, True, "auto", {SCALE: 1, GL: 4}),
    "auto, batches change": (LEAKY, 6, False, "auto", {SCALE: 5}),
    "auto, too many samples": (LEAKY, 9, True, "auto", {SCALE: 5}),
    "auto, most samples": (LEAKY, 8, True, "auto", {SCALE: 1, GL: 4}),
    "auto, ReLU": (RELU, 6, True, "auto", {SCALE: 5}),
    "auto, Tanh": (TANH, 6, True, "auto", {REST: 5}),
    "none": (LEAKY, 6, True, "none", {REST: 5}),
    "rescaling": (LEAKY, 6, True, "rescaling", {SCALE: 5}),
    "by name": (LEAKY, 6, False, "post_activation", {GL: 5}),
}


@pytest.mark.parametrize(("between", "samples", "stays", "action", "expected"), POLICY.values(),
    ids=POLICY)  # fmt: skip
def test_an_action_is_taken_where_it_is_exact_and_the_report_counts_it(
    between, samples, stays, action, expected
):
    model = mlp(between, dtype=torch.float64)
    optimizer = LearnedOptimizer(model, build(hold=0.0), action=action)
    for seed in range(5):
        made = batch_for(mlp, samples, 1 if stays else seed, torch.float64)
        train(model, optimizer, [made])
        move = optimizer.teleportation
        if move is not None:
            assert not move.rejected
            assert move.invariance_error() < 1e-8
    assert counts(optimizer) == expected
    assert (move is None) == (expected == {REST: 5})


def test_the_same_samples_in_another_order_are_another_batch():
    model, (x, y) = mlp(), batch_for(mlp)
    optimizer = LearnedOptimizer(model, build())
    train(model, optimizer, [(x, y), (x.flip(0), y.flip(0))] * 2)
    assert counts(optimizer) == {SCALE: 4}


def output_change(optimizer: LearnedOptimizer, x: torch.Tensor) -> float:
    """Of the last teleportation, on any input, over the output's norm."""
    return float(optimizer.teleportation.invariance_error(x))


@pytest.mark.parametrize("make", [mlp, conv_net])
def test_rescaling_keeps_the_output_on_fresh_data_and_does_move(make):
    model = make(dtype=torch.float64)
    optimizer = LearnedOptimizer(model, build(), action="rescaling")
    for seed in range(4):
        train(model, optimizer, [batch_for(make, seed=seed, dtype=torch.float64)])
        move = optimizer.teleportation
        assert output_change(optimizer, batch_for(make, 20, 9, torch.float64)[0]) < 1e-12
        assert max((a - b).abs().max() for a, b in zip(move.before, move.after, strict=True)) > 1e-3


def test_where_gradients_are_summed_over_parts_the_output_is_kept_on_all_of_them():
    model, (x, y) = mlp(dtype=torch.float64), batch_for(mlp, dtype=torch.float64)
    optimizer = LearnedOptimizer(model, build(hold=0.0))
    for _ in range(4):
        optimizer.zero_grad()
        for part in (slice(0, 3), slice(3, 6)):
            nn.functional.mse_loss(model(x[part]), y[part]).backward()
        optimizer.step()
        assert output_change(optimizer, x[3:]) < 1e-8
        assert output_change(optimizer, x[:3]) < 1e-8


def other_pass(model, x, kind):
    if kind == "no_grad":
        with torch.no_grad():
            model(x)
    elif kind == "undifferentiated":
        model(x)
    else:  # a copy, trained on its own
        twin = copy.deepcopy(model)
        twin(x).sum().backward()


@pytest.mark.parametrize("kind", ["no_grad", "undifferentiated", "copy"])
@pytest.mark.parametrize("make", [mlp, conv_net])
def test_a_step_sees_the_pass_that_was_differentiated_and_no_other(make, kind):
    ends = []
    for disturbed in (False, True):
        model, (x, y) = make(), batch_for(make)
        model.eval()  # a further pass in training mode would change the statistics of batch norm
        optimizer = LearnedOptimizer(model, build())
        for _ in range(4):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            if disturbed:
                other_pass(model, batch_for(make, 4, 7)[0], kind)
            optimizer.step()
        ends.append(model)
    assert equal(*ends)


def test_a_chain_whose_pass_nobody_saw_is_refused_in_one_line_and_stays():
    model, (x, y) = mlp(), batch_for(mlp)
    optimizer = LearnedOptimizer(model, build())
    train(model, optimizer, [(x, y)])
    start = copy.deepcopy(model)
    with torch.no_grad():
        model(x)
    with pytest.raises(UserError, match="expected a forward pass") as error:
        optimizer.step()
    assert "\n" not in str(error.value)
    assert equal(model, start)


def test_other_networks_are_stepped_without_teleportation_where_nobody_saw_a_pass():
    model, (x, y) = conv_net(), batch_for(conv_net)
    optimizer = LearnedOptimizer(model, build())
    start = copy.deepcopy(model)
    nn.functional.mse_loss(model.forward(x), y).backward()  # past the hooks of the model
    optimizer.step()
    assert "no teleportation (no differentiated forward pass was seen): 1" in optimizer.report()
    assert optimizer.teleportation is None
    assert distance(model, start) > 0


@pytest.mark.parametrize("make", [mlp, conv_net])
def test_without_any_gradient_a_step_does_nothing(make):
    model = make()
    optimizer = LearnedOptimizer(model, build())
    start = copy.deepcopy(model)
    model(batch_for(make)[0])
    optimizer.step()
    assert equal(model, start)
    assert counts(optimizer) == {}


def test_a_step_leaves_buffers_random_numbers_hooks_and_the_mode_alone():
    model, (x, y) = conv_net(dropout=0.2), batch_for(conv_net)
    optimizer = LearnedOptimizer(model, build())
    for _ in range(3):
        nn.functional.mse_loss(model(x), y).backward()
        buffers = copy.deepcopy(dict(model.named_buffers()))
        random = torch.get_rng_state()
        optimizer.step()
        assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())
        assert torch.equal(torch.get_rng_state(), random)
        assert all(module.training for module in model.modules())
        assert not any(module._forward_pre_hooks for module in model.modules())
    assert counts(optimizer) == {SCALE: 3}


BAD = {
    "site": (mlp, {"sites": [("0", "9")]}, "no layer called 9"),
    "action": (mlp, {"action": "pre_activation"}, "expected an action of auto, post_activation"),
    "nothing to rescale": (lambda: mlp(nn.Tanh()), {"action": "rescaling"},
        r"a site for RescalingAction, got none \(.*Tanh is not positively homogeneous"),
    "no chain": (conv_net, {"action": GL}, "expected a chain of Linear layers"),
    "no site": (lambda: nn.Sequential(nn.Linear(9, 3)), {"action": GL}, "expected"),
    "sites for GL": (mlp, {"action": GL, "sites": [("0", "2")]}, "sites were given"),
    "loss_fn": (mlp, {"loss_fn": 3}, "expected a loss_fn that can be called"),
    "lr": (mlp, {"lr": -1.0}, "expected an lr of 0 or more"),
    "lr nan": (mlp, {"lr": float("nan")}, "expected an lr of 0 or more"),
    "frozen": (lambda: mlp().requires_grad_(False), {}, "that require a gradient"),
    "frozen, no m2": (lambda: mlp().requires_grad_(False),
        {"meta": {"update": "layerwise", "element": "none"}}, "that require a gradient"),
    "flat m1": (conv_net, {"meta": {"update": "flat", "element": "flat"}}, "can rescale units"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "options", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused_in_one_line_and_leave_no_hook(make, options, message):
    options = dict(options)
    meta, model = build(**options.pop("meta", {})), make()
    start = copy.deepcopy(model)
    with pytest.raises(UserError, match=message) as error:
        LearnedOptimizer(model, meta, **options)
    assert "\n" not in str(error.value)
    assert equal(model, start)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("options", [{"action": "none"}, {"sites": []}, {"loss_fn": nn.MSELoss()}])
def test_parameters_alone_have_no_action_sites_or_loss(options):
    with pytest.raises(UserError, match="sites of an nn"):
        LearnedOptimizer(mlp().parameters(), build(), **options)


def test_given_sites_are_rescaled_and_others_stay_where_the_step_left_them():
    model = mlp()
    optimizer = LearnedOptimizer(model, build(), sites=[("2", "4")])
    train(model, optimizer, [batch_for(mlp)] * 3)
    move = optimizer.teleportation
    moved = [not torch.equal(a, b) for a, b in zip(move.before, move.after, strict=True)]
    assert moved == [False, False, True, True, True, False]
    assert "0, 2: it is not among the given sites" in optimizer.report()
