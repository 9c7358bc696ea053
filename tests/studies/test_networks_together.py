"""Networks trained together are those trained one by one by torch's own SGD."""

import pytest
import torch
from torch import nn

from studies.generalization import networks
from studies.generalization.networks import (
    CHAIN,
    evaluate,
    initial_weights,
    single,
    train_epoch,
)

SIZES = (12, 7, 5, 4)


def images(count=53):
    g = torch.Generator().manual_seed(0)
    x = torch.rand(count, SIZES[0], generator=g, dtype=torch.float64)
    return x, torch.randint(0, SIZES[-1], (count,), generator=g)


def module(weights):
    layers = []
    for weight in weights:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight.data = weight.clone()
        layers += [layer, nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("block", [1, 3, 100])
@pytest.mark.parametrize("minibatch", [1, 5, 53])
def test_each_is_trained_as_if_alone(block, minibatch, monkeypatch):
    monkeypatch.setattr(networks, "BLOCK", block)
    x, y = images()
    weights = initial_weights((3, 4, 5), SIZES, torch.float64)
    alone = [module(own) for own in single(weights)]
    orders = [torch.randperm(len(y), generator=torch.Generator().manual_seed(s)) for s in (1, 2)]
    for order in orders:
        train_epoch(weights, x, y, order, minibatch, 0.3)
    for model, trained in zip(alone, single(weights), strict=True):
        optimizer = torch.optim.SGD(model.parameters(), 0.3)
        for order in orders:
            for index in order.split(minibatch):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[index]), y[index]).backward()
                optimizer.step()
        for parameter, weight in zip(model.parameters(), trained, strict=True):
            torch.testing.assert_close(parameter.detach(), weight, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 2**24])
def test_each_is_evaluated_as_if_alone(chunk, monkeypatch):
    monkeypatch.setattr(networks, "CHUNK", chunk)
    x, y = images()
    weights = initial_weights((3, 4), SIZES, torch.float64)
    losses, accuracies = evaluate(weights, x, y)
    for own, loss, accuracy in zip(single(weights), losses, accuracies, strict=True):
        output = module(own)(x)
        torch.testing.assert_close(nn.functional.cross_entropy(output, y), loss)
        assert accuracy.item() == pytest.approx((output.argmax(1) == y).double().mean().item())


def test_a_network_depends_on_its_own_seed_alone():
    together, alone = initial_weights((7, 8, 9), SIZES), initial_weights((8,), SIZES)
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a[1], b[0])
        assert not torch.equal(a[0], b[0])
    assert [tuple(w.shape) for w in together] == [(3, 7, 12), (3, 5, 7), (3, 4, 5)]
    assert together[0].abs().max() <= 12**-0.5


def test_the_chain_computes_their_outputs():
    x, _ = images(5)
    weights = initial_weights((7, 8), SIZES, torch.float64)
    output = CHAIN.output(CHAIN.layers(weights), x.mT)
    for own, columns in zip(single(weights), output, strict=True):
        torch.testing.assert_close(module(own)(x).mT, columns)
