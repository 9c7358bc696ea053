"""Orbits of chains: what a search takes along them, and gradients through several sites."""

import pytest
import torch
from cases import mixed_signs

from metaopt.symmetry import ACTIONS, LayerInput, make_action, teleport
from metaopt.symmetry.chain import Identity, Layer, LayerChain, LeakyReLU
from metaopt.symmetry.objectives import gradient_norm
from metaopt.symmetry.orbit import ChainOrbit
from metaopt.symmetry.search import GradientAscent


@pytest.mark.parametrize("name", ACTIONS)
def test_the_elements_taken_lead_from_the_start_to_the_end(name):
    problem = mixed_signs(4, 6, 5, 3).sample((0, 1, 2))
    chain, parameters = problem.chain, [p.detach() for p in problem.parameters()]

    def loss(values):
        output = chain.output(chain.layers(values), problem.x)
        return (problem.y - output).square().sum(dim=(-2, -1))

    orbit = ChainOrbit(chain, LayerInput(problem.x), make_action(name))
    climb = GradientAscent(iterations=3, size=0.5)(orbit, parameters, loss)
    assert len(climb.taken) == 3
    for elements in climb.taken:
        parameters = orbit.move(parameters, elements).parameters
    for again, found in zip(parameters, climb.parameters, strict=True):
        torch.testing.assert_close(again, found, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["post_activation", "pre_activation"])
def test_the_direction_is_right_where_a_moved_layer_depends_on_an_earlier_one(name):
    """On a chain of three layers the second site's h depends on the first site's T."""
    g = torch.Generator().manual_seed(3)
    chain = LayerChain((LeakyReLU(0.3), LeakyReLU(0.3), Identity()), (False,) * 3)
    layers = [Layer(torch.randn(4, 4, generator=g, dtype=torch.float64)) for _ in range(3)]
    x, y = (torch.randn(4, 4, generator=g, dtype=torch.float64) for _ in range(2))

    def loss(parameters):
        return 0.5 * (y - chain.output(chain.layers(parameters), x)).square().sum()

    elements = [torch.zeros(4, 4, dtype=torch.float64, requires_grad=True) for _ in chain.sites]

    def value(*elements):
        move = teleport(chain, layers, LayerInput(x), elements, make_action(name))
        return gradient_norm(chain.parameters(move.layers), loss)

    analytic = torch.autograd.grad(value(*elements), elements)
    step = 1e-6
    for site, entry in ((0, (1, 2)), (1, (0, 3)), (1, (2, 2))):
        shifted = []
        for sign in (1, -1):
            moved = [element.detach().clone() for element in elements]
            moved[site][entry] += sign * step
            shifted.append(value(*(m.requires_grad_() for m in moved)).item())
        numeric = (shifted[0] - shifted[1]) / (2 * step)
        assert analytic[site][entry].item() == pytest.approx(numeric, rel=1e-5)
