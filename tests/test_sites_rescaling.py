"""Rescaling at the sites of ordinary modules: the function stays, on fresh data too."""

import copy

import pytest
import torch
from network_cases import case_called, every_rescaled_site, output, sample, site_of
from torch.func import functional_call

from metaopt import UserError
from metaopt.symmetry import ActingSite, Element, Orbit, RescalingAction, find_sites


def drawn_scale(site):
    return torch.empty(site.width, dtype=torch.float64).uniform_(-1.5, 1.5)


def moved_by(model, site, t):
    """The point exp(t) . w, with the names of the model's parameters."""
    names = tuple(name for name, _ in model.named_parameters())
    orbit = Orbit(names, [ActingSite(site, RescalingAction())])
    point = orbit.move(list(model.parameters()), [Element(t, diagonal=True)])
    return dict(zip(names, point.parameters, strict=True)), point.rejected


def rescale(model, site, t):
    values, rejected = moved_by(model, site, t)
    assert not rejected
    with torch.no_grad():
        for name, value in values.items():
            model.get_parameter(name).copy_(value)


def sides(site):
    """The names of the parameters that are multiplied, and of the one that is divided."""
    multiplied = [name for view in site.incoming for name in view.parameters]
    (divided,) = site.outgoing
    return (tuple(multiplied), (divided.parameter,))


@every_rescaled_site
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_rescaling_keeps_the_output_on_fresh_data(case, name, training):
    model, x = sample(case)
    site = site_of(model, name)
    model.train()
    if not training:
        with torch.no_grad():
            model(x)  # running statistics away from 0 and 1
        model.eval()
    for seed in range(3):
        torch.manual_seed(10 + seed)
        fresh, moved = torch.randn_like(x), copy.deepcopy(model)
        rescale(moved, site, drawn_scale(site))
        before, after = output(model, fresh), output(moved, fresh)
        assert (after - before).abs().max() < 1e-10
        assert before.abs().max() > 1e-3
        for n, p in moved.named_parameters():
            touched = n in {name for side in sides(site) for name in side}
            assert torch.equal(p, model.get_parameter(n)) != touched, n


@every_rescaled_site
def test_scaling_only_one_side_changes_the_output(case, name):
    model, x = sample(case)
    site = site_of(model, name)
    changed, _ = moved_by(model, site, drawn_scale(site))
    own = dict(model.named_parameters())
    differing = {name for name, value in changed.items() if not torch.equal(value, own[name])}
    assert differing == {name for side in sides(site) for name in side}
    for side in sides(site):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in side:
                moved.get_parameter(parameter).copy_(changed[parameter])
        assert (output(moved, x) - output(model, x)).abs().max() > 1e-4


@every_rescaled_site
def test_moved_weights_lie_in_memory_as_they_did(case, name):
    """A forward may call view() on what a convolution gives, whose strides follow its weights'."""
    model, _ = sample(case)
    site = site_of(model, name)
    values, _ = moved_by(model, site, drawn_scale(site))
    for own, parameter in model.named_parameters():
        assert values[own].stride() == parameter.stride(), own


@every_rescaled_site
def test_the_loss_is_flat_along_the_orbit_and_its_gradient_is_not(case, name):
    model, x = sample(case)
    model.eval()
    site = site_of(model, name)
    t = drawn_scale(site).mul(0.5).requires_grad_()
    parameters, _ = moved_by(model, site, t)
    out = functional_call(model, parameters, x)
    loss = (out - torch.randn_like(out)).square().mean()
    used = [parameters[name] for side in sides(site) for name in side]
    gradients = torch.autograd.grad(loss, used, create_graph=True)
    (along,) = torch.autograd.grad(loss, t, retain_graph=True)
    assert along.abs().max() < 1e-12
    size = sum(g.square().sum() for g in gradients)
    (along,) = torch.autograd.grad(size, t)
    assert along.abs().max() > 1e-6


def test_a_rescaling_in_float32_is_rounded_once():
    model = case_called("grouped").build()
    site = site_of(model, "2 -> 4")
    t = drawn_scale(site).float()
    twin = copy.deepcopy(model).double()
    rescale(model, site, t)
    rescale(twin, site, t)
    for own, exact in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(own, exact.float())


def test_a_unit_is_scaled_by_its_own_entry():
    model, _ = sample(case_called("convolutions"))
    moved = copy.deepcopy(model)
    t = torch.tensor([0.0, 0.7, 0.0], dtype=torch.float64)
    rescale(moved, site_of(model, "3 -> 8"), t)
    d = t[1].exp()
    torch.testing.assert_close(moved[3].weight[1], model[3].weight[1] * d)
    torch.testing.assert_close(moved[3].bias[1], model[3].bias[1] * d)
    torch.testing.assert_close(moved[8].weight[:, 4:8], model[8].weight[:, 4:8] / d)
    assert torch.equal(moved[8].weight[:, :4], model[8].weight[:, :4])
    assert torch.equal(moved[8].bias, model[8].bias)


@pytest.mark.parametrize(
    ("label", "width", "words"),
    [
        ("GELU", 6, r"a site for RescalingAction, .*GELU is not positively homogeneous"),
        ("dropout", 5, r"element of shape \(6,\) for a site of width 6, got \(5,\)"),
    ],
)
def test_a_scale_that_does_not_fit_the_site_is_refused(label, width, words):
    model = case_called(label).build()
    (site,) = find_sites(model).found
    with pytest.raises(UserError, match=words) as error:
        moved_by(model, site, torch.zeros(width))
    assert "\n" not in str(error.value)


# e^20 overflows float16
@pytest.mark.parametrize("entry", [33.0, -33.0, torch.nan, torch.inf, 20.0])
def test_a_scale_that_cannot_be_trusted_is_rejected_and_moves_nothing(entry):
    model = case_called("dropout").build().half()
    (site,) = find_sites(model).found
    t = torch.zeros(6)
    t[3] = entry
    values, rejected = moved_by(model, site, t)
    assert rejected
    for name, parameter in model.named_parameters():
        assert values[name].dtype == torch.float16
        assert torch.equal(values[name], parameter)


def test_a_missing_parameter_is_named():
    model = case_called("MLP").build()
    site = site_of(model, "1 -> 3")
    weights = {"1.weight": model[1].weight, "3.weight": model[3].weight}
    with pytest.raises(KeyError, match=r"1\.bias"):
        RescalingAction().move(Element(torch.zeros(5), diagonal=True), site, weights)
