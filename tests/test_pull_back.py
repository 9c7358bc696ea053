"""Gradients along an orbit at the identity: closed forms against the derivative of the move."""

import pytest
import torch
from cases import crossed, draw
from network_cases import ZOO, sample

from metaopt import UserError
from metaopt.symmetry import ACTIONS, LayerInput, make_action
from metaopt.symmetry.chain import Identity, Layer, LayerChain, LeakyReLU
from metaopt.symmetry.finders import find_sites
from metaopt.symmetry.orbit import ChainOrbit
from metaopt.symmetry.rescaling_orbit import RescalingOrbit
from metaopt.symmetry.search import NEAR, GradientAscent


def like(layer):
    return layer.map(lambda t: torch.randn_like(t))


@pytest.mark.parametrize(**crossed())
def test_a_pulled_back_gradient_is_that_of_the_move_at_the_identity(variant, case):
    drawn, action = draw(case), variant.make()
    gradients = like(drawn.incoming), like(drawn.outgoing)
    pair = (drawn.incoming, drawn.outgoing, LayerInput(drawn.h), drawn.activation)
    width = case.hidden
    shape = (*case.batch, width) if action.diagonal else (*case.batch, width, width)
    element = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    move = action.act(element, *pair)
    value = sum(
        (moved * gradient).sum()
        for layer, slopes in zip(move[:2], gradients, strict=True)
        for moved, gradient in zip(layer, slopes, strict=True)
        if moved is not None
    )
    (expected,) = torch.autograd.grad(value, element)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(action.pull_back(gradients, *pair), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ACTIONS)
@pytest.mark.parametrize("bias", [False, True])
def test_each_site_of_a_chain_has_its_own(name, bias):
    g = torch.Generator().manual_seed(1)
    chain = LayerChain((LeakyReLU(0.3), LeakyReLU(0.2), Identity()), (bias,) * 3)
    sizes = ((5, 6), (4, 5), (3, 4))

    def drawn(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    def layers():
        return [Layer(drawn(2, *size), drawn(2, size[0]) if bias else None) for size in sizes]

    parameters, gradients = (chain.parameters(layers()) for _ in range(2))
    orbit = ChainOrbit(chain, LayerInput(drawn(2, 6, 4)), make_action(name))
    elements = [element.requires_grad_() for element in orbit.identity(parameters)]
    moved = orbit.move(parameters, elements).parameters
    value = sum((a * b).sum() for a, b in zip(moved, gradients, strict=True))
    expected = torch.autograd.grad(value, elements)
    torch.testing.assert_close(
        orbit.pull_back(parameters, gradients), list(expected), rtol=1e-8, atol=1e-9
    )


RESCALED = [case for case in ZOO if any(site.homogeneous for site in case.found.values())]


@pytest.mark.parametrize("case", RESCALED, ids=lambda case: case.label)
def test_so_has_each_site_that_is_rescaled(case):
    model, _ = sample(case)
    sites = [site for site in find_sites(model).found if site.homogeneous]
    names = tuple(dict.fromkeys(n for s in sites for n in (*s.multiplied, s.divided)))
    parameters = [model.get_parameter(name).detach().double() for name in names]
    gradients = [torch.randn_like(parameter) for parameter in parameters]
    orbit = RescalingOrbit(names, sites)
    elements = [element.requires_grad_() for element in orbit.identity(parameters)]
    moved = orbit.move(parameters, elements).parameters
    value = sum((a * b).sum() for a, b in zip(moved, gradients, strict=True))
    expected = torch.autograd.grad(value, elements)
    torch.testing.assert_close(orbit.pull_back(parameters, gradients), list(expected))


@pytest.mark.parametrize("name", ACTIONS)
def test_it_is_zero_where_a_move_could_not_be_trusted(name):
    incoming, outgoing = torch.randn(2, 4, 5).double(), torch.randn(2, 3, 4).double()
    incoming[0, 1, 2] = torch.nan
    gradients = Layer(torch.ones_like(incoming)), Layer(torch.ones_like(outgoing))
    pair = (Layer(incoming), Layer(outgoing), LayerInput(torch.randn(2, 5, 4)), LeakyReLU(0.1))
    pulled = make_action(name).pull_back(gradients, *pair)
    assert pulled.isfinite().all()
    assert (pulled[0] == 0).all()
    assert (pulled[1] != 0).any()


def ascent(objective, start=1.0, **options):
    """On a rescaling orbit of one number, w -> e^t w, with 1 / w beside it."""
    chain = LayerChain((Identity(), Identity()), (False, False))
    orbit = ChainOrbit(chain, LayerInput(torch.ones(1, 1)), make_action("rescaling"))
    tried = []

    def counted(parameters, loss):
        tried.append(float(parameters[0].detach()))
        return objective(parameters[0].squeeze())

    search = GradientAscent(objective=counted, **options)
    parameters = [torch.full((1, 1), value, dtype=torch.float64) for value in (start, 1 / start)]
    climb = search(orbit, parameters, lambda values: values[0].squeeze())
    return climb, tried


def test_a_search_ends_next_to_its_bound():
    climb, tried = ascent(lambda w: w, iterations=50, size=0.1, most_ratio=1.5)
    reached = float(climb.parameters[0])
    assert 1.5 - 0.5 * NEAR <= reached <= 1.5
    assert len(climb.taken) < 10
    assert len(tried) < 20


def test_a_step_that_passes_the_bound_is_aimed_at_it():
    climb, tried = ascent(lambda w: w, iterations=50, size=5.0, most_ratio=1.5)
    assert 1.5 - 0.5 * NEAR <= float(climb.parameters[0]) <= 1.5
    assert len(tried) < 12


def test_a_search_ends_where_no_halving_helps():
    climb, tried = ascent(lambda w: -(w - 1).square(), iterations=50, size=0.1, halvings=3)
    assert len(climb.taken) == 1, "at the maximum already"
    assert len(tried) == 1 + 4
    assert float(climb.parameters[0]) == 1.0


def test_a_bound_next_to_the_start_is_climbed_to():
    climb, _ = ascent(lambda w: w, iterations=50, size=0.1, most_ratio=1.001)
    assert 1.0 < float(climb.parameters[0]) <= 1.001


def test_eq_78_without_an_inverse_is_refused_in_words():
    pair = (Layer(torch.ones(2, 3)), Layer(torch.ones(1, 2)), LayerInput(torch.ones(3, 2)))
    with pytest.raises(UserError, match=r"expected a bijective activation for eq\. 78"):
        make_action("post_activation").pull_back(pair[:2], *pair, LeakyReLU(0.0))


def test_each_point_is_evaluated_once():
    _, tried = ascent(lambda w: w, iterations=5, size=0.1)
    assert len(tried) == len(set(tried)) == 6
