"""Orbits: what a search takes along them, gradients through several sites, actions that differ."""

from dataclasses import replace

import pytest
import torch
from cases import LEAKY_ACTIONS, LINEAR, PLAIN, TWINS, group_elements, mixed_signs, naive_output
from torch import nn

from metaopt import UserError
from metaopt.symmetry import (
    ACTIONS,
    ActingSite,
    Action,
    Element,
    GradientAscent,
    Identity,
    LayerChain,
    LayerInput,
    LeakyReLU,
    LinearAction,
    Moved,
    Orbit,
    RescalingAction,
    chain_orbit,
    find_sites,
    gradient_norm,
    make_action,
)


def normal(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", ACTIONS)
def test_the_elements_taken_lead_from_the_start_to_the_end(name):
    tasks = mixed_signs(4, 6, 5, 3).sample((0, 1, 2))
    chain, parameters = tasks.chain, [p.detach() for p in tasks.parameters()]
    if name == LINEAR:
        chain = replace(chain, activations=(Identity(),) * 2)

    def loss(values):
        output = chain.output(chain.layers(values), tasks.x)
        return (tasks.y - output).square().sum(dim=(-2, -1))

    orbit = chain_orbit(chain, parameters, LayerInput(tasks.x), make_action(name))
    result = GradientAscent(iterations=3, initial_step=0.5)(orbit, parameters, loss)
    assert len(result.elements) == 3
    for elements in result.elements:
        parameters = orbit.move(parameters, elements).parameters
    for again, found in zip(parameters, result.parameters, strict=True):
        torch.testing.assert_close(again, found, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["post_activation", "pre_activation"])
def test_the_direction_is_right_where_a_moved_layer_depends_on_an_earlier_one(name):
    """On a chain of three layers the second site's h depends on the first site's T."""
    g = torch.Generator().manual_seed(3)
    chain = LayerChain((LeakyReLU(0.3), LeakyReLU(0.3), Identity()), (False,) * 3)
    parameters = [torch.randn(4, 4, generator=g, dtype=torch.float64) for _ in range(3)]
    x, y = (torch.randn(4, 4, generator=g, dtype=torch.float64) for _ in range(2))
    orbit = chain_orbit(chain, parameters, LayerInput(x), make_action(name))

    def loss(values):
        return 0.5 * (y - chain.output(chain.layers(values), x)).square().sum()

    zeros = [zero.values.requires_grad_() for zero in orbit.identity(parameters)]
    assert len(zeros) == 2

    def value(*values):
        move = orbit.move(parameters, [Element(own) for own in values])
        return gradient_norm(move.parameters, loss)

    analytic = torch.autograd.grad(value(*zeros), zeros)
    step = 1e-6
    for site, entry in ((0, (1, 2)), (1, (0, 3)), (1, (2, 2))):
        shifted = []
        for sign in (1, -1):
            moved = [zero.detach().clone() for zero in zeros]
            moved[site][entry] += sign * step
            shifted.append(value(*(m.requires_grad_() for m in moved)).item())
        numeric = (shifted[0] - shifted[1]) / (2 * step)
        assert analytic[site][entry].item() == pytest.approx(numeric, rel=1e-5)


# Sites with actions of their own.


def two_kinds():
    """A module with a ReLU at its first site and nothing at its second, and an orbit of both."""
    torch.manual_seed(0)
    layers = nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.Linear(4, 3)
    model = nn.Sequential(*layers).double()
    first, second = find_sites(model).found
    acting = (ActingSite(first, RescalingAction()), ActingSite(second, LinearAction()))
    names = tuple(name for name, _ in model.named_parameters())
    return model, Orbit(names, acting), [p.detach() for p in model.parameters()]


def drawn(orbit, parameters, scale=0.4):
    """An element for each site."""
    zeros = orbit.identity(parameters)
    return [
        zero.with_values(scale * normal(20 + seed, *zero.values.shape))
        for seed, zero in enumerate(zeros)
    ]


def test_sites_with_different_actions_keep_the_output_of_one_module_on_all_data():
    model, orbit, parameters = two_kinds()
    elements = drawn(orbit, parameters)
    assert [tuple(t.values.shape) for t in elements] == [(6,), (4, 4)]
    point = orbit.move(parameters, elements)
    assert not point.rejected.any()
    for name, before, after in zip(orbit.names, parameters, point.parameters, strict=True):
        assert torch.equal(before, after) == (name == "3.bias"), name
    for samples in (1, 50):
        x = normal(9, samples, 5)
        weights = dict(zip(orbit.names, point.parameters, strict=True))
        output = torch.func.functional_call(model, weights, (x,))
        torch.testing.assert_close(output, model(x), rtol=1e-12, atol=1e-12)


def test_each_site_moves_by_its_own_action():
    """In closed form: D W_1, then G W_2 D^-1, and W_3 G^-1."""
    _, orbit, parameters = two_kinds()
    elements = drawn(orbit, parameters)
    d, g = elements[0].values.exp(), torch.linalg.matrix_exp(elements[1].values)
    w1, b1, w2, b2, w3, b3 = parameters
    expected = (d[:, None] * w1, d * b1, g @ w2 / d, g @ b2, w3 @ torch.linalg.inv(g), b3)
    for got, want in zip(orbit.move(parameters, elements).parameters, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


def test_sites_with_different_actions_have_gradients_of_their_own():
    """Against central differences, entry by entry."""
    _, orbit, parameters = two_kinds()
    gradients = [normal(40 + seed, *p.shape) for seed, p in enumerate(parameters)]
    pulled = orbit.pull_back(parameters, gradients)

    def value(values):
        moved = orbit.move(parameters, orbit.elements(parameters, values)).parameters
        return sum((p * v).sum().item() for p, v in zip(moved, gradients, strict=True))

    step = 1e-6
    for site, gradient in enumerate(pulled):
        for entry in range(gradient.values.numel()):
            shifted = []
            for sign in (1, -1):
                values = [zero.values for zero in orbit.identity(parameters)]
                values[site].view(-1)[entry] = sign * step
                shifted.append(value(values))
            numeric = (shifted[0] - shifted[1]) / (2 * step)
            found = gradient.values.reshape(-1)[entry].item()
            assert found == pytest.approx(numeric, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("squares", [False, True])
def test_buffers_go_through_the_sites_in_turn_each_by_its_own_action(squares):
    """The layer between the two sites is carried by both."""
    _, orbit, parameters = two_kinds()
    elements = drawn(orbit, parameters)
    buffers = [normal(60 + seed, *p.shape).abs() for seed, p in enumerate(parameters)]
    d, g = elements[0].values.exp(), torch.linalg.matrix_exp(elements[1].values)
    inverse = torch.linalg.inv(g).T
    if squares:
        d, g, inverse = d.square(), g.square(), inverse.square()
    m1, n1, m2, n2, m3, n3 = buffers
    expected = (m1 / d[:, None], n1 / d, inverse @ (m2 * d), inverse @ n2, m3 @ g.T, n3)
    moved = orbit.transport(buffers, elements, squares)
    for got, want in zip(moved, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


# A part of a chain's sites.

WIDTHS, SLOPES = (5, 6, 4, 5, 3), (0.1, 0.5, 0.3, 1.0)
CHAIN = LayerChain(
    (LeakyReLU(0.1), LeakyReLU(0.5), LeakyReLU(0.3), Identity()), (True, False, True, False)
)


def drawn_chain(samples=4):
    """Parameters of the chain, and x."""
    parameters = []
    for seed, biased in enumerate(CHAIN.biased):
        parameters.append(normal(seed, WIDTHS[seed + 1], WIDTHS[seed]))
        parameters += [normal(10 + seed, WIDTHS[seed + 1])] if biased else []
    return parameters, normal(30, WIDTHS[0], samples)


class Watching(Action):
    """Another action, and the inputs that it was given."""

    group, exact_when, uses_inputs = "GL", "the other is", True

    def __init__(self, action):
        self.action, self.given = action, []

    def max_samples(self, site):
        return self.action.max_samples(site)

    def identity(self, site, weights):
        return self.action.identity(site, weights)

    def move(self, element, site, weights, inputs=None) -> Moved:
        self.given.append(inputs.original)
        return self.action.move(element, site, weights, inputs)

    def pull_back(self, gradients, site, weights, inputs=None) -> Element:
        self.given.append(inputs.original)
        return self.action.pull_back(gradients, site, weights, inputs)


def part_of_the_chain(places, parameters, x, actions):
    sites = CHAIN.sites(parameters)
    acting = [ActingSite(sites[m], action) for m, action in zip(places, actions, strict=True)]
    return Orbit(CHAIN.names, acting, CHAIN, LayerInput(x))


SUBSETS = [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)]


@pytest.mark.parametrize("places", SUBSETS, ids=str)
@pytest.mark.parametrize("variant", [v for v in PLAIN if v.name in LEAKY_ACTIONS], ids=str)
def test_an_orbit_on_a_part_of_the_sites_gives_each_the_inputs_at_its_layer(variant, places):
    parameters, x = drawn_chain()
    watching = [Watching(make_action(variant.name)) for _ in places]
    orbit = part_of_the_chain(places, parameters, x, watching)
    elements = drawn(orbit, parameters, scale=0.2)
    point = orbit.move(parameters, elements)
    assert not point.rejected.any()
    expected = CHAIN.layers(parameters)
    for m, element, watched in zip(places, elements, watching, strict=True):
        h = naive_output(expected[:m], SLOPES[:m], x)  # at the weights that earlier sites left
        torch.testing.assert_close(watched.given[0], h, rtol=1e-10, atol=1e-11)
        g, inverse = (t.squeeze(0) for t in group_elements(variant, element))
        expected[m : m + 2] = TWINS[variant.name](g, inverse, *expected[m : m + 2], h, SLOPES[m])
    for got, want in zip(point.parameters, CHAIN.parameters(expected), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
    before, after = (
        naive_output(CHAIN.layers(at), SLOPES, x) for at in (parameters, point.parameters)
    )
    assert (after - before).norm() < 1e-10 * before.norm()


@pytest.mark.parametrize("places", SUBSETS, ids=str)
def test_a_gradient_in_the_elements_is_taken_at_the_inputs_of_each_site(places):
    parameters, x = drawn_chain()
    watching = [Watching(make_action("post_activation")) for _ in places]
    orbit = part_of_the_chain(places, parameters, x, watching)
    gradients = [normal(40 + seed, *p.shape) for seed, p in enumerate(parameters)]
    pulled = orbit.pull_back(parameters, gradients)
    whole = chain_orbit(CHAIN, parameters, LayerInput(x), make_action("post_activation"))
    every = whole.pull_back(parameters, gradients)
    layers = CHAIN.layers(parameters)
    for m, found, watched in zip(places, pulled, watching, strict=True):
        h = naive_output(layers[:m], SLOPES[:m], x)
        torch.testing.assert_close(watched.given[0], h, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(found.values, every[m].values, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("places", [(1, 0), (2, 0), (0, 2, 1)], ids=str)
def test_sites_out_of_the_order_of_the_data_flow_are_refused(places):
    parameters, x = drawn_chain()
    actions = [make_action("post_activation") for _ in places]
    orbit = part_of_the_chain(places, parameters, x, actions)
    elements = drawn(orbit, parameters, scale=0.2)
    for call in (
        lambda: orbit.move(parameters, elements),
        lambda: orbit.pull_back(parameters, parameters),
    ):
        with pytest.raises(UserError, match="in the order of the data flow, got"):
            call()
