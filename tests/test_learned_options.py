"""Options of learned optimizers: weight decay, maximize, rates; and what parameters they take."""

import copy
import math

import pytest
import torch
from learned_network_cases import batch_for, build, conv_net, equal, mlp, train
from torch import nn
from torch.nn import functional as F

from metaopt import LearnedOptimizer, list_pretrained
from metaopt.errors import UserError
from metaopt.learned.meta_optimizer import StepInput
from metaopt.tasks import RegressionFamily

NETWORKS = pytest.mark.parametrize("make", [mlp, conv_net])
SHIPPED = pytest.mark.parametrize("name", list_pretrained())


@SHIPPED
@NETWORKS
@pytest.mark.parametrize("lr", [1.0, 0.1])
def test_decay_draws_each_tensor_to_zero_by_a_part_of_the_length_of_its_step(make, name, lr):
    """One step by hand: w + f (1 - decay w / ||w||), f being the step without decay."""
    start, one = make(), batch_for(make)
    plain, decayed = copy.deepcopy(start), copy.deepcopy(start)
    options = {"lr": lr, "loss_fn": nn.MSELoss(), "action": "none"}
    train(plain, LearnedOptimizer(plain, name, **options), [one])
    optimizer = LearnedOptimizer(decayed, name, weight_decay=0.3, **options)
    train(decayed, optimizer, [one])
    moved = False
    for w, with_none, with_some in zip(
        start.parameters(), plain.parameters(), decayed.parameters(), strict=True
    ):
        f = with_none - w
        size = w.norm() if w.norm() > 0 else 1.0
        expected = with_none - 0.3 * f.norm() * w / size
        torch.testing.assert_close(with_some, expected, rtol=1e-5, atol=1e-7)
        moved = moved or not torch.equal(with_none, with_some)
    assert moved


def test_decay_of_a_batch_of_tasks_is_that_of_each_task_alone():
    family = RegressionFamily(4, 3, 5, 2)
    together = family.sample([3, 8])
    apart = [family.sample([seed]) for seed in (3, 8)]
    for tasks in (together, *apart):
        optimizer = LearnedOptimizer(tasks, build(element="none"), weight_decay=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            tasks().sum().backward()
            optimizer.step()
    for joint, *singles in zip(
        together.parameters(), *(t.parameters() for t in apart), strict=True
    ):
        torch.testing.assert_close(joint, torch.cat(singles), rtol=1e-5, atol=1e-7)


def test_a_tensor_of_zeros_does_not_decay_to_nan():
    now = StepInput([torch.zeros(3)], [torch.ones(3)], weight_decay=0.5)
    assert torch.equal(now.updated([-torch.ones(3)])[0], -torch.ones(3))


def test_groups_have_their_own_decay_and_it_is_saved():
    def start():
        model = mlp()
        weights = [p for p in model.parameters() if p.dim() > 1]
        biases = [p for p in model.parameters() if p.dim() == 1]
        groups = [{"params": weights, "weight_decay": 0.5}, {"params": biases}]
        return model, LearnedOptimizer(groups, "lstm_layerwise_v1")

    (model, optimizer), plain = start(), mlp()
    one = batch_for(mlp)
    train(model, optimizer, [one])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    train(plain, LearnedOptimizer(plain, "lstm_layerwise_v1"), [one])
    for own, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(own, other) == (own.dim() == 1)
    _, loaded = start()
    loaded.param_groups[0]["weight_decay"] = 0.0
    loaded.load_state_dict(optimizer.state_dict())
    assert loaded.param_groups[0]["weight_decay"] == 0.5


@SHIPPED
@NETWORKS
def test_to_maximize_is_to_minimize_the_negative(make, name):
    (up, down), one = (make(), make()), batch_for(make)
    rising = LearnedOptimizer(up, name, maximize=True)
    falling = LearnedOptimizer(down, name)
    train(up, rising, [one] * 4, lambda out, y: -F.mse_loss(out, y))
    train(down, falling, [one] * 4, F.mse_loss)
    assert equal(up, down)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_a_complex_parameter_is_stepped_as_pairs_of_real_numbers(dtype):
    generator = torch.Generator().manual_seed(1)
    whole = nn.Parameter(torch.randn(5, 3, dtype=dtype, generator=generator))
    pairs = nn.Parameter(torch.view_as_real(whole).detach().clone())
    goal = torch.randn(5, 3, dtype=dtype, generator=generator)
    start = whole.detach().clone()
    for parameter, view in ((whole, lambda p: p), (pairs, torch.view_as_complex)):
        optimizer = LearnedOptimizer([parameter], "lstm_layerwise", weight_decay=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            (view(parameter) - goal).abs().square().sum().backward()
            optimizer.step()
    assert torch.equal(torch.view_as_real(whole.detach()), pairs.detach())
    assert (whole - start).imag.abs().min() > 0
    assert (whole - goal).abs().sum() < (start - goal).abs().sum()


@pytest.mark.parametrize("name", ["lstm_update_tele", "lstm_update"])
def test_complex_layers_are_refused_where_layers_are_looked_at(name):
    with pytest.raises(UserError, match=r"expected real parameters .* use lstm_layerwise"):
        LearnedOptimizer(nn.Sequential(nn.Linear(3, 2, dtype=torch.cfloat)), name)


def test_a_sparse_gradient_is_refused_and_nothing_is_stepped():
    model = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Flatten(), nn.Linear(4, 2))
    optimizer = LearnedOptimizer(model, "lstm_layerwise")
    start = copy.deepcopy(model)
    model(torch.arange(4)[:, None]).square().sum().backward()
    with pytest.raises(UserError, match=r"expected dense gradients, got a sparse one .*\(9, 4\)"):
        optimizer.step()
    assert equal(model, start)
    assert not optimizer.state


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": torch.tensor([1.0, 0.1])}, "an lr of 0 or more, got a tensor of 2 entries"),
        ({"lr": torch.tensor(-1.0)}, "an lr of 0 or more, got -1.0"),
        ({"lr": "fast"}, "an lr of 0 or more, got 'fast'"),
        ({"weight_decay": -0.1}, "a weight_decay of 0 or more, got -0.1"),
        ({"weight_decay": math.inf}, "a weight_decay of 0 or more, got inf"),
        ({"weight_decay": math.nan}, "a weight_decay of 0 or more, got nan"),
    ],
)
def test_numbers_that_cannot_be_used_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        LearnedOptimizer(mlp(), "lstm_layerwise", **options)
    groups = [{"params": [nn.Parameter(torch.ones(2))], **options}]
    with pytest.raises(UserError, match=message):
        LearnedOptimizer(groups, "lstm_layerwise")
    optimizer = LearnedOptimizer(mlp(), "lstm_layerwise")
    with pytest.raises(UserError, match=message):
        optimizer.add_param_group(groups[0])
    assert len(optimizer.param_groups) == len(optimizer.steppers) == 1


def test_a_rate_that_is_a_tensor_is_followed():
    (one, other), data = (mlp(), mlp()), batch_for(mlp)
    rate = torch.tensor(0.5)
    followed = LearnedOptimizer(one, "lstm_layerwise", lr=rate)
    plain = LearnedOptimizer(other, "lstm_layerwise", lr=0.5)
    train(one, followed, [data])
    train(other, plain, [data])
    rate.fill_(0.25)
    plain.param_groups[0]["lr"] = 0.25
    train(one, followed, [data])
    train(other, plain, [data])
    assert equal(one, other)


@pytest.mark.parametrize("name", ["lstm_update_tele_v1", "lstm_lr_tele"])
def test_a_small_rate_scales_the_group_element_too(name):
    start, one, moved = mlp(), batch_for(mlp), []
    for lr in (0.5, 1.0, 2.0):
        model = copy.deepcopy(start)
        optimizer = LearnedOptimizer(model, name, lr=lr, loss_fn=nn.MSELoss())
        train(model, optimizer, [one])
        move = optimizer.teleportation
        assert move is not None
        assert move.invariance_error() < 1e-4
        gaps = [(a - b).norm() for a, b in zip(move.after, move.before, strict=True)]
        moved.append(float(torch.stack(gaps).norm()))
    assert 0.2 < moved[0] / moved[1] < 0.8
    assert moved[1] > 0


def test_parameters_that_are_all_frozen_are_refused():
    parameters = [nn.Parameter(torch.ones(2), requires_grad=False)]
    with pytest.raises(UserError, match="require a gradient, got none: unfreeze"):
        LearnedOptimizer(parameters, "lstm_layerwise")
