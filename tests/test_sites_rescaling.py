"""Rescaling at the sites of ordinary modules: the function stays, on fresh data too."""

import copy

import pytest
import torch
from network_cases import ZOO, sample
from torch.func import functional_call

from metaopt import UserError
from metaopt.symmetry.finders import (
    find_sites,
    rescale,
    rescaled,
)

every_case = pytest.mark.parametrize("case", ZOO, ids=lambda case: case.label)
SITES = [(case, name) for case in ZOO for name, site in case.found.items() if site.homogeneous]
every_site = pytest.mark.parametrize(("case", "name"), SITES, ids=lambda v: getattr(v, "label", v))


def site_of(model, name):
    return next(s for s in find_sites(model).found if f"{s.incoming} -> {s.outgoing}" == name)


def drawn_scale(site):
    return torch.empty(site.width, dtype=torch.float64).uniform_(-1.5, 1.5)


def output(model, x):
    """With the same dropout masks each time, and without a trace of batch statistics."""
    torch.manual_seed(3)
    return copy.deepcopy(model)(x)


def named(label):
    return next(case for case in ZOO if case.label == label)


@every_site
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
            touched = n in (*site.multiplied, site.divided)
            assert torch.equal(p, model.get_parameter(n)) != touched, n


@every_site
def test_scaling_only_one_side_changes_the_output(case, name):
    model, x = sample(case)
    site = site_of(model, name)
    changed = rescaled(dict(model.named_parameters()), site, drawn_scale(site))
    assert set(changed) == {*site.multiplied, site.divided}
    for side in (site.multiplied, (site.divided,)):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in side:
                moved.get_parameter(parameter).copy_(changed[parameter])
        assert (output(moved, x) - output(model, x)).abs().max() > 1e-4


@every_site
def test_the_loss_is_flat_along_the_orbit_and_its_gradient_is_not(case, name):
    model, x = sample(case)
    model.eval()
    site = site_of(model, name)
    t = drawn_scale(site).mul(0.5).requires_grad_()
    parameters = dict(model.named_parameters())
    parameters |= rescaled(parameters, site, t)
    out = functional_call(model, parameters, x)
    loss = (out - torch.randn_like(out)).square().mean()
    used = [parameters[n] for n in (*site.multiplied, site.divided)]
    gradients = torch.autograd.grad(loss, used, create_graph=True)
    (along,) = torch.autograd.grad(loss, t, retain_graph=True)
    assert along.abs().max() < 1e-12
    size = sum(g.square().sum() for g in gradients)
    (along,) = torch.autograd.grad(size, t)
    assert along.abs().max() > 1e-6


def test_a_rescaling_in_float32_is_rounded_once():
    model = named("grouped").build()
    site = site_of(model, "2 -> 4")
    t = drawn_scale(site).float()
    twin = copy.deepcopy(model).double()
    rescale(model, site, t)
    rescale(twin, site, t)
    for own, exact in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(own, exact.float())


def test_a_unit_is_scaled_by_its_own_entry():
    model, _ = sample(named("convolutions"))
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
    ("label", "t", "words"),
    [
        ("GELU", torch.zeros(6), r"commutes with scales, got 0 -> 2: use the pre_activation"),
        ("dropout", torch.zeros(5), "shape"),
        ("dropout", torch.full((6,), 33.0), "at most 32"),
        ("dropout", torch.full((6,), torch.nan), "at most 32"),
        ("dropout", torch.full((6,), 20.0), "stay finite"),  # e^20 overflows float16
    ],
)
def test_an_unusable_scale_is_refused_before_anything_moves(label, t, words):
    model = named(label).build().half()
    (site,) = find_sites(model).found
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=words):
        rescale(model, site, t)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_a_missing_parameter_is_named():
    model = named("MLP").build()
    parameters = {"1.weight": model[1].weight, "3.weight": model[3].weight}
    with pytest.raises(UserError, match=r"none called 1\.bias"):
        rescaled(parameters, site_of(model, "1 -> 3"), torch.zeros(5))
