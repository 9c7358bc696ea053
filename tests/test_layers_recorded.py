"""What layers are given, and gradients of what they give: plain, stacked, and under ``higher``."""

from __future__ import annotations

import higher
import pytest
import torch
from own_tasks import Adversarial, Attention, Images, Recurrent, Tokens
from torch import nn
from torch.nn import functional as F

from metaopt.errors import UserError
from metaopt.tasks import LayerRecorder, SingleTask, stacked

SEEDS = (3, 1, 8)


def recorded(model, backward):
    recorder = LayerRecorder(model)
    backward()
    found = recorder.take()
    recorder.remove()
    return found


@pytest.mark.parametrize("kind", [Images, Attention, Tokens, Adversarial])
def test_stacked_copies_record_what_the_copies_record(kind):
    together = stacked(kind(), SEEDS)
    found = recorded(together, lambda: together(1).sum().backward())
    singles = [SingleTask(kind(), seed) for seed in SEEDS]
    each = [recorded(own.network, lambda own=own: own(1).sum().backward()) for own in singles]
    assert found
    assert found.keys() == each[0].keys()
    for name, (call,) in found.items():
        own = [single[name][0] for single in each]
        torch.testing.assert_close(call.inputs, torch.stack([c.inputs for c in own]))
        expected = torch.stack([c.output_gradients for c in own])
        torch.testing.assert_close(call.output_gradients, expected, rtol=1e-10, atol=1e-12)


def test_gradients_of_weights_are_products_of_what_is_recorded():
    single = SingleTask(Tokens(), 5)
    found = recorded(single.network, lambda: single(0).sum().backward())
    (call,) = found["inner"]
    product = call.output_gradients.mT @ call.inputs
    torch.testing.assert_close(product, single.network.inner.weight.grad)


@pytest.mark.filterwarnings("ignore:Recurrent runs copy by copy")
def test_copies_that_run_one_by_one_record_too():
    together = stacked(Recurrent(), SEEDS)
    found = recorded(together, lambda: together(0).sum().backward())
    own = SingleTask(Recurrent(), SEEDS[1])
    (expected,) = recorded(own.network, lambda: own(0).sum().backward())["out"]
    (call,) = found["out"]
    torch.testing.assert_close(call.inputs[1], expected.inputs)
    torch.testing.assert_close(call.output_gradients[1], expected.output_gradients)


@pytest.mark.parametrize("plain", [True, False])
def test_under_higher_the_same_is_recorded(plain):
    tasks = SingleTask(Images(), 3) if plain else stacked(Images(), SEEDS)
    recorder = LayerRecorder(tasks)
    tasks(0).sum().backward()
    expected = recorder.take()
    recorder.remove()
    optimizer = torch.optim.SGD(tasks.parameters(), 0.1)
    with higher.innerloop_ctx(tasks, optimizer) as (patched, _):
        again = LayerRecorder(patched)
        losses = patched(0)
        torch.autograd.grad(losses.sum(), patched.fast_params, create_graph=True)
        found = again.take()
        again.remove()
    assert found.keys() == expected.keys()
    for name, (call,) in found.items():
        torch.testing.assert_close(call.inputs, expected[name][0].inputs)
        torch.testing.assert_close(call.output_gradients, expected[name][0].output_gradients)


def test_a_layer_that_is_called_twice_has_two_calls_and_evaluation_records_nothing():
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.Tanh(), layer)
    recorder = LayerRecorder(model)
    x = torch.randn(4, 3)
    F.mse_loss(model(x), x).backward()
    first, second = recorder.take()["0"]
    assert torch.equal(first.inputs, x)
    torch.testing.assert_close(
        second.inputs, torch.tanh(F.linear(x, layer.weight, layer.bias)).detach()
    )
    with torch.no_grad():
        model(x)
    assert recorder.take() == {}
    model(x)
    assert recorder.take()["0"][0].output_gradients is None
    recorder.remove()
    model(x)
    assert recorder.take() == {}


def test_a_module_without_layers_is_refused():
    with pytest.raises(UserError, match="expected a module with Linear layers or convolutions"):
        LayerRecorder(nn.Embedding(3, 2))
