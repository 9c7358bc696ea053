"""Learned optimizers at the edges: many columns, thawed layers, refused groups, reports."""

import copy
import math

import pytest
import torch
from learned_network_cases import batch_for, build, made, mlp, train, weights
from torch import nn
from torch.nn import functional as F

from metaopt import LearnedOptimizer, UserError
from metaopt.learned import lstm as fused
from metaopt.problems import RegressionFamily


@pytest.mark.parametrize("block", [1, 3, 6, 7])
def test_columns_stepped_in_blocks_give_the_same_values_and_gradients(monkeypatch, block):
    net = fused.LSTM(3, 5, 2, 4, torch.Generator().manual_seed(0)).double()
    torch.manual_seed(1)
    x = torch.randn(3, 7, dtype=torch.float64)
    state = [torch.randn(5, 7, dtype=torch.float64) for _ in range(4)]
    results, gradients = [], []
    for size in (7, block):
        monkeypatch.setattr(fused, "BLOCK", size)
        own = [tensor.clone().requires_grad_() for tensor in (x, *state)]
        output, following = net(own[0], own[1:])
        assert output.shape == (4, 7)
        assert [tensor.shape for tensor in following] == [(5, 7)] * 4
        loss = sum((i + 1) * tensor.sin().sum() for i, tensor in enumerate((output, *following)))
        gradients.append(torch.autograd.grad(loss, [*own, *net.parameters()]))
        results.append([output, *following])
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-11, atol=1e-13)


def test_a_layer_that_is_thawed_later_is_named_and_nothing_moves():
    model = mlp()
    model[0].requires_grad_(False)
    optimizer = LearnedOptimizer(model, build())
    model[0].requires_grad_(True)
    x, y = batch_for(mlp)
    F.mse_loss(model(x), y).backward()
    start = weights(model)
    with pytest.raises(UserError, match=r"gradient of 0\.weight, which was frozen"):
        optimizer.step()
    assert all(map(torch.equal, start, weights(model)))


def test_a_group_that_m1_cannot_step_is_refused_and_leaves_no_trace():
    family = RegressionFamily(4, 3, 3, 2)
    optimizer = LearnedOptimizer(family.sample([10**7]), build(inputs=("gradient", "covariance")))
    with pytest.raises(UserError, match="sees the covariance of features"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})
    assert len(optimizer.param_groups) == len(optimizer.bodies) == 1


def test_the_report_says_what_is_stepped_and_how():
    problem = RegressionFamily(4, 3, 3, 2).sample([10**7])
    assert "1 sites of a chain of layers that holds its data" in LearnedOptimizer(
        problem, build()
    ).report()
    alone = LearnedOptimizer([nn.Parameter(torch.ones(2)) for _ in range(3)], build())
    assert "3 parameters that are stepped without teleportation" in alone.report()
