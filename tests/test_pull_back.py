"""Gradients along an orbit at the identity: closed forms against the derivative of the move."""

import pytest
import torch
from cases import LINEAR, Drawn, act, crossed, draw, draw_element
from network_cases import ZOO, sample

from metaopt import UserError
from metaopt.symmetry import (
    ACTIONS,
    ActingSite,
    GradientAscent,
    Identity,
    Layer,
    LayerChain,
    LayerInput,
    LeakyReLU,
    Orbit,
    RescalingAction,
    chain_orbit,
    find_sites,
    make_action,
)
from metaopt.symmetry.search import NEAR


def like(layer):
    return layer.map(lambda t: torch.randn_like(t))


def assert_pulls_back_as_it_moves(orbit, parameters, gradients, **tolerances):
    """Against the derivative of the move at the identity."""
    zeros = [zero.map(lambda t: t.requires_grad_()) for zero in orbit.identity(parameters)]
    moved = orbit.move(parameters, zeros).parameters
    value = sum((a * b).sum() for a, b in zip(moved, gradients, strict=True))
    expected = torch.autograd.grad(value, [zero.values for zero in zeros])
    pulled = [element.values for element in orbit.pull_back(parameters, gradients)]
    torch.testing.assert_close(pulled, list(expected), **tolerances)


@pytest.mark.parametrize(**crossed())
def test_a_pulled_back_gradient_is_that_of_the_move_at_the_identity(variant, case):
    drawn, action = draw(case), variant.make()
    gradients = like(drawn.incoming), like(drawn.outgoing)
    zero = draw_element(variant, case).map(lambda t: torch.zeros_like(t).requires_grad_())
    move = act(action, zero, drawn)
    value = sum(
        (moved * gradient).sum()
        for layer, slopes in zip(move[:2], gradients, strict=True)
        for moved, gradient in zip(layer, slopes, strict=True)
        if moved is not None
    )
    (expected,) = torch.autograd.grad(value, zero.values)
    assert expected.abs().max() > 0.1
    pulled = action.pull_back(
        drawn.named(gradients), drawn.site, drawn.weights, LayerInput(drawn.h)
    )
    assert pulled.diagonal == zero.diagonal
    torch.testing.assert_close(pulled.values, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ACTIONS)
@pytest.mark.parametrize("bias", [False, True])
def test_each_site_of_a_chain_has_its_own(name, bias):
    g = torch.Generator().manual_seed(1)
    between = (Identity(),) * 2 if name == LINEAR else (LeakyReLU(0.3), LeakyReLU(0.2))
    chain = LayerChain((*between, Identity()), (bias,) * 3, batch_dims=1)
    sizes = ((5, 6), (4, 5), (3, 4))

    def drawn(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    def layers():
        return [Layer(drawn(2, *size), drawn(2, size[0]) if bias else None) for size in sizes]

    parameters, gradients = (chain.parameters(layers()) for _ in range(2))
    orbit = chain_orbit(chain, parameters, LayerInput(drawn(2, 6, 4)), make_action(name))
    assert_pulls_back_as_it_moves(orbit, parameters, gradients, rtol=1e-8, atol=1e-9)


RESCALED = [case for case in ZOO if any(site.homogeneous for site in case.found.values())]


@pytest.mark.parametrize("case", RESCALED, ids=lambda case: case.label)
def test_so_has_each_site_that_is_rescaled(case):
    model, _ = sample(case)
    sites = [site for site in find_sites(model).found if site.homogeneous]
    names = tuple(dict.fromkeys(name for site in sites for name in site.parameters))
    parameters = [model.get_parameter(name).detach().double() for name in names]
    gradients = [torch.randn_like(parameter) for parameter in parameters]
    orbit = Orbit(names, [ActingSite(site, RescalingAction()) for site in sites])
    assert_pulls_back_as_it_moves(orbit, parameters, gradients)


@pytest.mark.parametrize("name", ACTIONS)
def test_it_is_zero_where_a_move_could_not_be_trusted(name):
    incoming, outgoing = torch.randn(2, 4, 5).double(), torch.randn(2, 3, 4).double()
    incoming[0, 1, 2] = torch.nan
    gradients = Layer(torch.ones_like(incoming)), Layer(torch.ones_like(outgoing))
    between = Identity() if name == LINEAR else LeakyReLU(0.1)
    drawn = Drawn(Layer(incoming), Layer(outgoing), torch.randn(2, 5, 4), between)
    pulled = make_action(name).pull_back(
        drawn.named(gradients), drawn.site, drawn.weights, LayerInput(drawn.h)
    )
    assert pulled.values.isfinite().all()
    assert (pulled.values[0] == 0).all()
    assert (pulled.values[1] != 0).any()


def ascent(objective, start=1.0, **options):
    """On a rescaling orbit of one number, w -> e^t w, with 1 / w beside it."""
    chain = LayerChain((Identity(), Identity()), (False, False))
    parameters = [torch.full((1, 1), value, dtype=torch.float64) for value in (start, 1 / start)]
    orbit = chain_orbit(chain, parameters, LayerInput(torch.ones(1, 1)), make_action("rescaling"))
    tried = []

    def counted(parameters, loss):
        tried.append(float(parameters[0].detach()))
        return objective(parameters[0].squeeze())

    search = GradientAscent(objective=counted, **options)
    result = search(orbit, parameters, lambda values: values[0].squeeze())
    return result, tried


def test_a_search_ends_next_to_its_bound():
    result, tried = ascent(lambda w: w, iterations=50, initial_step=0.1, max_ratio=1.5)
    reached = float(result.parameters[0])
    assert 1.5 - 0.5 * NEAR <= reached <= 1.5
    assert len(result.elements) < 10
    assert len(tried) < 20


def test_a_step_that_passes_the_bound_is_aimed_at_it():
    result, tried = ascent(lambda w: w, iterations=50, initial_step=5.0, max_ratio=1.5)
    assert 1.5 - 0.5 * NEAR <= float(result.parameters[0]) <= 1.5
    assert len(tried) < 12


def test_a_search_ends_where_no_backtracking_helps():
    result, tried = ascent(
        lambda w: -(w - 1).square(), iterations=50, initial_step=0.1, max_backtracks=3
    )
    assert len(result.elements) == 1, "at the maximum already"
    assert len(tried) == 1 + 4
    assert float(result.parameters[0]) == 1.0


def test_a_bound_next_to_the_start_is_climbed_to():
    result, _ = ascent(lambda w: w, iterations=50, initial_step=0.1, max_ratio=1.001)
    assert 1.0 < float(result.parameters[0]) <= 1.001


def test_eq_78_without_an_inverse_is_refused_in_words():
    drawn = Drawn(
        Layer(torch.ones(2, 3)), Layer(torch.ones(1, 2)), torch.ones(3, 2), LeakyReLU(0.0)
    )
    with pytest.raises(UserError, match=r"expected a bijective activation for eq\. 78"):
        make_action("post_activation").pull_back(
            drawn.weights, drawn.site, drawn.weights, LayerInput(drawn.h)
        )


def test_each_point_is_evaluated_once():
    _, tried = ascent(lambda w: w, iterations=5, initial_step=0.1)
    assert len(tried) == len(set(tried)) == 6
