"""Copies of networks with their optimizers, and the differentiable form, against the original."""

import copy
import pickle

import pytest
import torch
from learned_network_cases import (
    batch_for,
    build,
    conv_net,
    equal,
    halves,
    made,
    mlp,
    train,
    weights,
)
from torch import nn
from torch.nn import functional as F

from metaopt.learned.differentiable import differentiable

NETWORKS = pytest.mark.parametrize("make", [mlp, conv_net])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))],
    ids=["deepcopy", "pickle"])  # fmt: skip
@NETWORKS
def test_a_copy_of_model_and_optimizer_goes_on_alike_and_apart(make, duplicate):
    model, optimizer, one = made(make)
    train(model, optimizer, [one] * 3)
    twin, other = duplicate((model, optimizer))
    start, move = copy.deepcopy(twin), other.teleportation
    outputs = move.outputs(move.before)
    train(model, optimizer, [one] * 3)
    assert equal(twin, start)
    assert torch.equal(move.outputs(move.before), outputs)
    train(twin, other, [one] * 3)
    assert equal(twin, model)
    assert other.report() == optimizer.report()


LOSSES = {
    "sum of halves": (halves, None, 0),
    "loss_fn": (F.mse_loss, nn.MSELoss(), 0),
    "measured before": (F.mse_loss, None, 3),
}


@pytest.mark.parametrize(("loss_fn", "given", "before"), LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("hold", [0.03, 0.0])
@NETWORKS
def test_the_differentiable_form_walks_the_trajectory_of_the_drop_in(
    make, hold, loss_fn, given, before
):
    model, optimizer, (x, y) = made(make, meta=build(hold=hold), loss_fn=given)
    train(model, optimizer, [(x, y)] * before, loss_fn)
    with differentiable(model, optimizer) as run:
        for _ in range(6):
            output = run.network(x)
            run.optimizer.step(loss_fn(output, y), x=x, output=output)
        stepped = [p.detach() for p in run.network.fast_params]
    train(model, optimizer, [(x, y)] * 6, loss_fn)
    torch.testing.assert_close(stepped, weights(model), rtol=1e-5, atol=1e-6)


@NETWORKS
def test_the_differentiable_form_leaves_the_optimizer_alone(make):
    model, optimizer, one = made(make)
    train(model, optimizer, [one] * 2)
    alone, other = copy.deepcopy((model, optimizer))
    x, y = batch_for(make, 5, 2, torch.float64)
    with differentiable(model, optimizer) as run:
        run.optimizer.step(halves(run.network(x), y), x=x)
    train(model, optimizer, [one] * 2)
    train(alone, other, [one] * 2)
    assert equal(model, alone)
    assert optimizer.report() == other.report()
