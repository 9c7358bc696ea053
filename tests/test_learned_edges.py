"""Learned optimizers at the edges: many columns, thawed layers, refused groups, reports."""

import copy
import math

import pytest
import torch
from learned_network_cases import (
    Residual,
    batch_for,
    build,
    distance,
    equal,
    made,
    mlp,
    train,
    weights,
)
from torch import nn
from torch.nn import functional as F

from metaopt import LearnedOptimizer, UserError
from metaopt.learned import lstm as fused
from metaopt.learned.checkpoint import read_checkpoint, write_checkpoint
from metaopt.learned.element import CoordinatewiseElementConfig
from metaopt.learned.forward_record import ForwardRecord, ForwardRecorder
from metaopt.learned.loss_curvature import known_curvature
from metaopt.learned.meta_optimizer import MetaOptimizerSpec, StepInput
from metaopt.learned.observation import Observation, log_sign
from metaopt.learned.spectral import Spectrum
from metaopt.learned.stepper import largest_so_far, loosely
from metaopt.learned.units import Units
from metaopt.symmetry import Identity, LayerChain, LeakyReLU
from metaopt.tasks import RegressionFamily


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


@pytest.mark.parametrize("alone", ["x", "h", "c", "weights"])
def test_what_alone_asks_for_a_gradient_gets_the_same_one_as_among_others(alone):
    net = fused.LSTM(3, 5, 1, 2, torch.Generator().manual_seed(0)).double()
    shapes = {"x": (3, 4), "h": (5, 4), "c": (5, 4)}
    gradients = []
    for asked in ({"x", "h", "c", "weights"}, {alone}):
        net.requires_grad_("weights" in asked)
        given = {n: rounded_away(*s).requires_grad_(n in asked) for n, s in shapes.items()}
        output, (h, c) = net(given["x"], [given["h"], given["c"]])
        own = [given[alone]] if alone in given else list(net.parameters())
        gradients.append(torch.autograd.grad((output.sum() + h.sin().sum() + c.sum()), own))
    torch.testing.assert_close(*gradients)


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
    assert len(optimizer.param_groups) == len(optimizer.steppers) == 1


def test_the_report_says_what_is_stepped_and_how():
    tasks = RegressionFamily(4, 3, 3, 2).sample([10**7])
    assert (
        "1 sites of a chain of layers that holds its data"
        in LearnedOptimizer(tasks, build()).report()
    )
    alone = LearnedOptimizer([nn.Parameter(torch.ones(2)) for _ in range(3)], build())
    assert "3 parameters that are stepped without teleportation" in alone.report()


# What m1 and m2 see.


def rounded_away(*shape, seed=0):
    """Numbers in float64 that float32 cannot hold."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_features_in_float64_are_of_the_input_as_it_was_given():
    chain = LayerChain((LeakyReLU(0.1), Identity()), (False, False), batch_dims=0)
    x, parameters = rounded_away(4, 5), [rounded_away(3, 4), rounded_away(2, 3)]
    seen = Observation.of(chain, parameters, parameters, x)
    assert torch.equal(seen.double_inputs[0], x)
    expected = nn.functional.leaky_relu(parameters[0] @ x, 0.1)
    torch.testing.assert_close(seen.double_inputs[1], expected, rtol=1e-14, atol=1e-14)


def test_the_numbers_that_the_networks_see_have_no_graph_where_what_is_seen_has_one():
    chain = LayerChain((LeakyReLU(0.1), Identity()), (True, True), batch_dims=0)
    own = [rounded_away(*shape).requires_grad_() for shape in ((3, 4), (3,), (2, 3), (2,))]
    gradients = [2 * p for p in own]
    seen = Observation.of(chain, own, gradients, rounded_away(4, 5), second_order=True)
    assert seen.gauss_newton_scale[0].requires_grad
    numbers = seen.numbers
    layers = [*numbers.layers, *numbers.double_layers, *numbers.layer_gradients]
    tensors = [
        *numbers.double_inputs,
        *numbers.gauss_newton_scale,
        *(t for layer in layers for t in layer),
    ]
    assert not any(tensor.requires_grad for tensor in tensors)
    assert seen.numbers.numbers is seen.numbers


def test_what_is_seen_of_loose_parameters_has_no_graph():
    own = [torch.ones(3, 2, requires_grad=True), torch.ones(2, requires_grad=True)]
    gradients = torch.autograd.grad(sum(p.pow(3).sum() for p in own), own, create_graph=True)
    seen, largest = loosely(own, gradients, largest_so_far(own))
    tensors = [*seen.parameters, *seen.gradients, *seen.given_scales, *largest]
    assert not any(tensor.requires_grad for tensor in tensors)


def test_the_scale_of_loose_parameters_is_a_hundred_gradients_over_their_norm_or_a_least_one():
    own, gradients = [torch.zeros(4, 9), torch.full((4, 9), 2.0)], [torch.full((4, 9), 0.5)] * 2
    seen, _ = loosely(own, gradients, largest_so_far(own))
    assert [float(s) for s in seen.given_scales] == pytest.approx(
        [100 * 3.0 / (0.03 * 6), 100 * 3 / 12]
    )


def test_weights_of_few_digits_keep_their_dtype_in_a_step():
    own = [torch.ones(3, dtype=torch.bfloat16), torch.ones(3, dtype=torch.float64)]
    stepped = StepInput(own, own, rate=0.5).updated([torch.ones(3), torch.ones(3)])
    assert [p.dtype for p in stepped] == [torch.bfloat16, torch.float64]
    assert all((p == 1.5).all() for p in stepped)


def test_gradients_of_units_are_those_of_the_gradients_and_the_balance_is_of_the_weights():
    units = Units(
        weights=(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 3.0])),
        gradients=(torch.tensor([5.0, 6.0]), torch.tensor([7.0, 9.0])),
        features=torch.ones(2),
        gradient_rms=torch.ones(()),
    )
    for name, energies in (("gradients", units.gradients), ("balance", units.weights)):
        expected = [channel for energy in energies for channel in log_sign(energy)]
        torch.testing.assert_close(units.channel_pairs(name), expected)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_a_unit_is_empty_or_not_whatever_the_scale_of_the_features(scale):
    features = scale * torch.tensor([1.0, 3.0, 1e-14])
    pair = (torch.ones(3), torch.ones(3))
    units = Units(pair, pair, features, torch.tensor(0.5 * scale))
    assert units.empty.tolist() == [False, False, True]
    t = units.element(torch.ones(3), gain=3.0).values
    assert t.tolist() == pytest.approx([math.tanh(3.0 * 0.5 / 4.0)] * 2 + [0.0])
    assert units.element(torch.ones(3), gain=0.0).values.tolist() == [1.0, 1.0, 0.0]


def test_the_spectrum_of_a_batch_of_batches_is_that_of_each_task():
    h = rounded_away(2, 3, 4, 6)
    h[1, 2] = 0.0
    whole = Spectrum.of(h)
    for i in range(2):
        for own, alone in zip(whole, Spectrum.of(h[i]), strict=True):
            torch.testing.assert_close(own[i], alone)


@pytest.mark.parametrize(
    ("loss_fn", "shape", "expected"),
    [
        (nn.CrossEntropyLoss(), (6, 3), 0.5 / 6),
        (nn.CrossEntropyLoss(), (6, 3, 4), 0.5 / 24),
        (nn.CrossEntropyLoss(), (3,), 0.5),
        (nn.CrossEntropyLoss(reduction="sum"), (6, 3), 0.5),
        (nn.MSELoss(), (6, 3), 2 / 18),
        (nn.BCEWithLogitsLoss(), (6, 1), 0.25 / 6),
        (nn.MSELoss(), (), 2.0),
        (nn.MSELoss(), (0, 3), 2.0),
    ],
)
def test_the_curvature_of_a_mean_is_that_of_a_term_over_the_number_of_terms(
    loss_fn, shape, expected
):
    assert known_curvature(loss_fn)(torch.zeros(shape)) == pytest.approx(expected)


# Files, specs and controls.


def test_a_file_says_what_it_is_and_of_which_version(tmp_path):
    write_checkpoint(tmp_path / "one.safetensors", {"a": torch.ones(2)}, {"own": 3})
    facts = read_checkpoint(tmp_path / "one.safetensors").facts
    assert facts.keys() == {"format", "version", "own", "sha256"}
    assert (facts["format"], facts["version"]) == ("metaopt", 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bound": 0.0}, r"expected bound in \(0, 32\], got 0"),
        ({"bound": -1.0}, r"expected bound in \(0, 32\], got -1"),
        ({"gate": -1.0}, "expected gate .*, got -1"),
    ],
)
def test_an_element_over_entries_needs_a_bound_and_a_gain_that_is_not_negative(fields, message):
    with pytest.raises(UserError, match=message):
        CoordinatewiseElementConfig(**fields)


@pytest.mark.parametrize(
    ("element", "largest"), [("spectral", 8), ("coordinatewise", 32), ("flat", 32)]
)
def test_a_bound_is_as_large_as_the_element_may_be(element, largest):
    assert MetaOptimizerSpec(element=element, bound=float(largest)).bound == largest
    with pytest.raises(UserError, match=rf"bound in \(0, {largest}\]"):
        MetaOptimizerSpec(element=element, bound=largest + 0.1)


# Passes.


class Scaled(nn.Linear):
    def forward(self, x, factor, name=None):
        return super().forward(x) * factor


def test_a_pass_keeps_numbers_and_words_as_they_were_given_and_tensors_without_their_graph():
    model, x = Scaled(2, 2), torch.ones(1, 2, requires_grad=True)
    recorder = ForwardRecorder(model)
    model(x * 1.0, 2.0, name="twice").sum().backward()
    seen = recorder.take()
    assert seen.arguments[1] == 2.0
    assert seen.keywords == {"name": "twice"}
    assert torch.equal(seen.x, x)
    assert not seen.x.requires_grad
    assert recorder.take() is None


@pytest.mark.parametrize("on", [False, True])
def test_a_pass_is_done_again_under_the_same_autocast(on):
    model, x = nn.Linear(3, 3), torch.ones(2, 3)
    recorder = ForwardRecorder(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=on):
        output = model(x)
    output.float().sum().backward()
    seen = recorder.take()
    assert seen.cast_to == (torch.bfloat16 if on else None)
    with seen.autocast():
        assert model(x).dtype == output.dtype == (torch.bfloat16 if on else torch.float32)


def test_a_pass_without_a_tensor_is_done_again_as_it_was():
    seen = ForwardRecord(("words",), {"count": 2})
    assert seen.x is None
    with seen.autocast():
        assert not torch.is_autocast_enabled("cpu")


# Batches.


def test_a_step_on_another_batch_is_the_same_whether_or_not_the_last_one_is_remembered():
    first, second = (batch_for(mlp, 5, seed, torch.float64) for seed in (1, 2))
    model, optimizer, _ = made(mlp)
    train(model, optimizer, [first])
    resumed, loaded, _ = made(mlp)
    resumed.load_state_dict(copy.deepcopy(model.state_dict()))
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, [second])
    train(resumed, loaded, [second])
    assert equal(model, resumed)


class Several(nn.Module):
    """Gives what an ordinary network gives in another form, as published models do."""

    def __init__(self, form):
        super().__init__()
        self.net, self.form = Residual(), form

    def forward(self, inputs, target=None):
        out = self.net(inputs["x"] if isinstance(inputs, dict) else inputs)
        loss = None if target is None else F.mse_loss(out, target)
        return self.form(loss, out)


FORMS = {
    "tuple": (lambda loss, out: (loss, out), lambda given: given[0]),
    "dict": (lambda loss, out: {"loss": loss, "logits": out}, lambda given: given["loss"]),
    "nested": (lambda loss, out: {"a": [(loss, 3)], "b": (out, None)}, lambda g: g["a"][0][0]),
}


@pytest.mark.parametrize(("form", "loss_of"), FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("name", ["lstm_update", "lstm_update_tele"])
def test_outputs_of_other_forms_are_seen_as_the_tensor_in_them(form, loss_of, name):
    plain = Several(lambda loss, out: out)
    model = Several(form)
    model.load_state_dict(plain.state_dict())
    x, y = batch_for(mlp)
    train(plain, LearnedOptimizer(plain, name), [(x, y)] * 4)
    optimizer = LearnedOptimizer(model, name)
    for inputs in ({"x": x, "n": 1}, x, {"x": x}, x):
        optimizer.zero_grad()
        loss_of(model(inputs, target=y)).backward()
        optimizer.step()
    assert optimizer.learned_state["curvature"][0] > 0
    assert distance(plain, model) < 1e-6
