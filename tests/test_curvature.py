"""Curves on orbits (appendix E.4), their curvature (eqs. 80, 84) and psi (eq. 14)."""

import math
from dataclasses import dataclass

import pytest
import torch
from cases import LINEAR
from network_cases import ZOO, sample
from torch import nn

from metaopt import TeleportingOptimizer, UserError
from metaopt.measures import Curvature, network_curvature
from metaopt.measures.curvature import (
    curvature,
    curvature_rate,
    mean_curvature,
    random_elements,
)
from metaopt.measures.curves import derivatives
from metaopt.symmetry import (
    ACTIONS,
    ActingSite,
    GradientAscent,
    Identity,
    Layer,
    LayerChain,
    LayerInput,
    LeakyReLU,
    Negated,
    Orbit,
    RescalingAction,
    chain_orbit,
    find_sites,
    make_action,
)


@dataclass(frozen=True)
class Asinh:
    """A smooth bijection of the real line."""

    homogeneous = False

    @property
    def inverse(self):
        return Sinh()

    def __call__(self, z):
        return torch.asinh(z)


@dataclass(frozen=True)
class Sinh:
    homogeneous = False

    @property
    def inverse(self):
        return Asinh()

    def __call__(self, z):
        return torch.sinh(z)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def orbit_of(activation, action, biases=(False, False), batch=(), sizes=(7, 6, 3, 4)):
    """An orbit of one site and parameters on it; sizes: inputs, hidden, out, samples.

    There is no activation for the action that needs that nothing lies between two layers.
    """
    inputs, hidden, out, samples = sizes
    g = generator(3)

    def drawn(*shape):
        return torch.randn(*batch, *shape, generator=g, dtype=torch.float64)

    activation = Identity() if action == LINEAR else activation
    chain = LayerChain((activation, Identity()), biases)
    layers = [
        Layer(drawn(hidden, inputs), drawn(hidden) if biases[0] else None),
        Layer(drawn(out, hidden), drawn(out) if biases[1] else None),
    ]
    parameters = chain.parameters(layers)
    h = LayerInput(drawn(inputs, samples))
    return chain_orbit(chain, parameters, h, make_action(action)), parameters


def along(orbit, parameters, elements, t):
    own = orbit.elements(parameters, [t * element for element in elements])
    moved = orbit.move(parameters, own)
    assert not moved.rejected.any()
    return moved.parameters


def finite_differences(orbit, parameters, elements):
    """gamma', gamma'' and gamma''' by central differences of fourth order and more."""
    h = 1e-3
    points = {k: along(orbit, parameters, elements, k * h) for k in range(-3, 4)}
    weights = (
        ({-3: -1, -2: 9, -1: -45, 1: 45, 2: -9, 3: 1}, 60 * h),
        ({-3: 2, -2: -27, -1: 270, 0: -490, 1: 270, 2: -27, 3: 2}, 180 * h**2),
        ({-3: 1, -2: -8, -1: 13, 1: -13, 2: 8, 3: -1}, 8 * h**3),
    )
    return [
        [sum(c * points[k][i] for k, c in row.items()) / scale for i in range(len(parameters))]
        for row, scale in weights
    ]


def three_derivatives(function, at):
    """The first three derivatives of an elementwise function."""
    found, point = [], at.detach().requires_grad_()
    result = function(point)
    for _ in range(3):
        if not result.requires_grad:
            result = torch.zeros_like(point)
        else:
            (result,) = torch.autograd.grad(
                result.sum(), point, create_graph=True, materialize_grads=True
            )
        found.append(result.detach())
    return found


def closed_form(element, incoming, outgoing, layer_input, activation):
    """The derivatives of both layers under eq. 78; U moves by U exp(-t M).

    With s_j the j-th derivative of sigma^-1 at A = sigma(V X), those of V are

        1st: [(M A) s_1] X^+
        2nd: [(M^2 A) s_1 + (M A)^2 s_2] X^+
        3rd: [(M^3 A) s_1 + 3 (M A)(M^2 A) s_2 + (M A)^3 s_3] X^+

    where the paper, which leaves 1 / j! out of the Taylor series, has 2, 6 and 6 for 1, 3 and 1.
    """
    seen = layer_input if incoming.bias is None else layer_input.with_ones
    a = activation(incoming.augmented() @ seen.h)
    first, second, third = three_derivatives(activation.inverse, a)
    ma, mma, mmma = element @ a, element @ element @ a, element @ element @ element @ a
    changes = (
        ma * first,
        mma * first + ma.square() * second,
        mmma * first + 3 * ma * mma * second + ma.pow(3) * third,
    )
    u, found = outgoing.weight, []
    for sign, change in zip((-1, 1, -1), changes, strict=True):
        u = u @ element
        moved = change @ seen.pseudo_inverse
        into = [moved] if incoming.bias is None else [moved[..., :-1], moved[..., -1]]
        bias = [] if outgoing.bias is None else [torch.zeros_like(outgoing.bias)]
        found.append([*into, sign * u, *bias])
    return found


@pytest.mark.parametrize("biases", [(False, False), (True, True)])
@pytest.mark.parametrize("activation", [LeakyReLU(0.1), Asinh()], ids=["LeakyReLU", "asinh"])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_the_closed_form_of_eq_78_is_forward_mode_and_finite_differences(activation, biases, batch):
    orbit, parameters = orbit_of(activation, "post_activation", biases, batch)
    (elements,) = random_elements(orbit, parameters, 1, generator())
    elements = [0.2 * element for element in elements]
    layers = orbit.chain.layers(parameters)
    closed = closed_form(elements[0], *layers, orbit.layer_input, activation)
    forward = derivatives(orbit, parameters, elements, order=3)
    numeric = finite_differences(orbit, parameters, elements)
    for order, tolerance in enumerate((1e-7, 1e-6, 1e-4)):
        for mine, other, approximate in zip(
            closed[order], forward[order], numeric[order], strict=True
        ):
            torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-11)
            torch.testing.assert_close(mine, approximate, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize(("second", "third"), [(1, (3, 1)), (2, (6, 6))], ids=["right", "printed"])
def test_eqs_91_and_93_lack_the_factors_of_the_taylor_series(second, third):
    """One unit, one sample, identity input, sigma = log: (M A)^j with A = sigma(V X)."""
    orbit, parameters = orbit_of(Asinh(), "post_activation", sizes=(3, 2, 2, 3))
    (elements,) = random_elements(orbit, parameters, 1, generator())
    v = orbit.chain.layers(parameters)[0].weight
    x = orbit.layer_input.original
    a, m = torch.asinh(v @ x), elements[0]
    ma, mma, mmma = m @ a, m @ m @ a, m @ m @ m @ a
    s1, s2, s3 = torch.cosh(a), torch.sinh(a), torch.cosh(a)
    inverse = torch.linalg.pinv(x)
    two = (mma * s1 + second * ma**2 * s2) @ inverse
    three = (mmma * s1 + third[0] * ma * mma * s2 + third[1] * ma**3 * s3) @ inverse
    _, forward_two, forward_three = derivatives(orbit, parameters, elements, order=3)
    holds = [
        torch.allclose(mine, other[0])
        for mine, other in ((two, forward_two), (three, forward_three))
    ]
    assert holds == [second == 1, third == (3, 1)]


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("batch", [(), (2,)])
def test_forward_mode_is_the_curve_of_every_action(action, batch):
    orbit, parameters = orbit_of(LeakyReLU(0.2), action, (True, False), batch)
    (elements,) = random_elements(orbit, parameters, 1, generator())
    elements = [0.1 * element for element in elements]
    found = derivatives(orbit, parameters, elements, order=3)
    numeric = finite_differences(orbit, parameters, elements)
    for order, tolerance in enumerate((1e-6, 1e-5, 1e-3)):
        for mine, approximate in zip(found[order], numeric[order], strict=True):
            torch.testing.assert_close(mine, approximate, rtol=tolerance, atol=tolerance)
    assert max(t.abs().max() for t in found[1]) > 0


@pytest.mark.parametrize("action", ACTIONS)
def test_sites_of_a_chain_move_together(action):
    """gamma'' has the mixed terms of two sites that share a layer."""
    g = generator(1)
    between = Identity() if action == LINEAR else LeakyReLU(0.2)
    chain = LayerChain((between, between, Identity()), (False,) * 3)
    shapes = ((5, 6), (5, 5), (3, 5))
    parameters = [torch.randn(*s, generator=g, dtype=torch.float64) for s in shapes]
    x = torch.randn(6, 4, generator=g, dtype=torch.float64)
    orbit = chain_orbit(chain, parameters, LayerInput(x), make_action(action))
    (elements,) = random_elements(orbit, parameters, 1, g)
    elements = [0.1 * element for element in elements]
    found = derivatives(orbit, parameters, elements, order=2)
    numeric = finite_differences(orbit, parameters, elements)
    for order, tolerance in enumerate((1e-6, 1e-5)):
        for mine, approximate in zip(found[order], numeric[order], strict=True):
            torch.testing.assert_close(mine, approximate, rtol=tolerance, atol=tolerance)
    alone = [
        derivatives(
            orbit, parameters, [e if s == site else 0 * e for s, e in enumerate(elements)], 2
        )
        for site in range(2)
    ]
    mixed = found[1][1] - alone[0][1][1] - alone[1][1][1]
    assert mixed.abs().max() > 1e-3, "the middle layer"


@pytest.mark.parametrize("action", ACTIONS)
def test_the_loss_stays_along_the_curve(action):
    orbit, parameters = orbit_of(LeakyReLU(0.2), action, (True, True))
    (elements,) = random_elements(orbit, parameters, 1, generator())

    def output(at):
        return orbit.chain.output(orbit.chain.layers(at), orbit.layer_input.original)

    start = output(parameters)
    for t in (-0.5, 0.1, 0.8):
        moved = along(orbit, parameters, elements, t)
        torch.testing.assert_close(output(moved), start, rtol=1e-9, atol=1e-9)
        assert (moved[0] - parameters[0]).abs().max() > 1e-2


@pytest.mark.parametrize("radius", [0.5, 3.0])
@pytest.mark.parametrize("speed", [1.0, 7.0])
def test_a_circle_has_the_curvature_of_its_radius_however_fast(radius, speed):
    t = torch.tensor(0.3).double()
    first = [radius * speed * torch.cos(t), -radius * speed * torch.sin(t)]
    second = [-radius * speed**2 * torch.sin(t), -radius * speed**2 * torch.cos(t)]
    third = [-radius * speed**3 * torch.cos(t), radius * speed**3 * torch.sin(t)]
    assert curvature(first, second).item() == pytest.approx(1 / radius, rel=1e-14)
    assert curvature_rate(first, second, third).item() == pytest.approx(0, abs=1e-12)


def parabola(t, k):
    t = torch.tensor(t, dtype=torch.float64)
    one, zero = torch.ones(()).double(), torch.zeros(()).double()
    return [one, 2 * k * t], [zero, 2 * k * one], [zero, zero]


@pytest.mark.parametrize("k", [0.3, 4.0])
def test_a_parabola_is_most_curved_at_its_vertex(k):
    assert curvature(*parabola(0.0, k)[:2]).item() == pytest.approx(2 * k)
    for t in (0.0, 0.2, -1.0):
        expected = 2 * k / (1 + (2 * k * t) ** 2) ** 1.5
        assert curvature(*parabola(t, k)[:2]).item() == pytest.approx(expected)
        rate = -2 * k * 3 * t * (2 * k) ** 2 / (1 + (2 * k * t) ** 2) ** 2.5
        assert curvature_rate(*parabola(t, k)).item() == pytest.approx(rate, abs=1e-14)


def test_the_curvature_is_eq_80_and_its_rate_eq_84_as_printed():
    g = generator(4)
    a, b, c = (torch.randn(2, 9, generator=g, dtype=torch.float64) for _ in range(3))
    split = [[t[:, :4], t[:, 4:].reshape(2, 5, 1)] for t in (a, b, c)]
    aa, bb, ab, bc, ac = ((x * y).sum(1) for x, y in ((a, a), (b, b), (a, b), (b, c), (a, c)))
    n = (aa * bb - ab**2).sqrt()
    printed = n / aa**1.5
    slope = (2 * aa * bc + 2 * bb * ab - 2 * ab * (bb + ac)) / (2 * n)
    rate = (slope * aa**1.5 - n * 3 * aa**0.5 * ab) / aa**3
    torch.testing.assert_close(curvature(*split[:2], batch_dims=1), printed)
    torch.testing.assert_close(curvature_rate(*split, batch_dims=1), rate)


def test_the_rate_is_the_change_of_the_curvature_along_an_orbit():
    orbit, parameters = orbit_of(Asinh(), "post_activation")
    (elements,) = random_elements(orbit, parameters, 1, generator())
    h = 1e-5

    def kappa(t):
        moved = along(orbit, parameters, elements, t)
        return curvature(*derivatives(orbit, moved, elements, order=2))

    rate = curvature_rate(*derivatives(orbit, parameters, elements, order=3))
    assert rate.item() == pytest.approx(((kappa(h) - kappa(-h)) / (2 * h)).item(), rel=1e-6)


def finite_difference_psi(orbit, parameters, elements):
    values = []
    for element in elements:
        first, second, _ = finite_differences(orbit, parameters, element)
        values.append(curvature(first, second, orbit.batch_dims(parameters)))
    return torch.stack(values).mean(dim=0)


def test_psi_is_the_mean_over_curves_whatever_the_size_of_their_elements():
    orbit, parameters = orbit_of(Asinh(), "post_activation", batch=(3,))
    elements = random_elements(orbit, parameters, 10, generator())
    psi = mean_curvature(orbit, parameters, elements)
    assert psi.shape == (3,)
    small = [[0.1 * t for t in element] for element in elements]
    torch.testing.assert_close(mean_curvature(orbit, parameters, small), psi)
    numeric = finite_difference_psi(orbit, parameters, small)
    torch.testing.assert_close(psi, numeric, rtol=1e-6, atol=0)
    each = [mean_curvature(orbit, parameters, [element]) for element in elements]
    torch.testing.assert_close(torch.stack(each).mean(dim=0), psi)


@pytest.mark.parametrize("action", ACTIONS)
def test_psi_is_differentiable_in_the_parameters(action):
    orbit, parameters = orbit_of(LeakyReLU(0.2), action, (True, True))
    objective = Curvature(random_elements(orbit, parameters, 2, generator())).on(orbit)
    own = [p.clone().requires_grad_() for p in parameters]
    gradients = torch.autograd.grad(objective(own, None), own)
    for index, gradient in enumerate(gradients):
        direction = torch.randn(gradient.shape, generator=generator(9), dtype=torch.float64)
        values = []
        for sign in (1e-6, -1e-6):
            moved = list(parameters)
            moved[index] = parameters[index] + sign * direction
            values.append(objective(moved, None).item())
        numeric = (values[0] - values[1]) / 2e-6
        assert (gradient * direction).sum().item() == pytest.approx(numeric, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("action", ACTIONS)
def test_a_teleport_changes_it_and_keeps_the_loss(action, sign):
    torch.manual_seed(0)
    between = [] if action == LINEAR else [nn.LeakyReLU(0.1)]
    model = nn.Sequential(nn.Linear(9, 8), *between, nn.Linear(8, 3)).double()
    x, y = torch.randn(7, 9).double(), torch.arange(7) % 3
    activation = Identity() if action == LINEAR else LeakyReLU(0.1)
    chain = LayerChain((activation, Identity()), (True, True))
    parameters = [p.detach().clone() for p in model.parameters()]
    orbit = chain_orbit(chain, parameters, LayerInput(x.mT), make_action(action))
    if action == "rescaling":
        orbit = rescaled(model, [name for name, _ in model.named_parameters()])
    elements = random_elements(orbit, parameters, 3, generator())
    objective = Curvature(elements) if sign > 0 else Negated(Curvature(elements))
    loss_fn = nn.CrossEntropyLoss()
    before = mean_curvature(orbit, parameters, elements)
    at = loss_fn(model(x), y)
    optimizer = TeleportingOptimizer(
        torch.optim.SGD(model.parameters(), 0.1),
        model,
        loss_fn,
        action,
        search=GradientAscent(iterations=3, initial_step=0.05, objective=objective),
    )
    optimizer.teleport(x, y)
    after = mean_curvature(orbit, [p.detach() for p in model.parameters()], elements)
    assert sign * (after - before) > 1e-4 * before
    torch.testing.assert_close(loss_fn(model(x), y), at, rtol=1e-8, atol=0)


def rescaled(model, names):
    """The orbit of all sites of a module whose units can be rescaled."""
    sites = [site for site in find_sites(model).found if site.homogeneous]
    return Orbit(names, [ActingSite(site, RescalingAction()) for site in sites])


RESCALED = [case for case in ZOO if any(site.homogeneous for site in case.found.values())]


@pytest.mark.parametrize("case", RESCALED[:6], ids=lambda case: case.label)
def test_rescaling_orbits_of_any_module_have_curves(case):
    model, _ = sample(case)
    sites = [site for site in find_sites(model).found if site.homogeneous]
    moved = [name for site in sites for name in site.without_outgoing_bias().parameters]
    names = tuple(dict.fromkeys(moved))
    parameters = [model.get_parameter(name).detach().double() for name in names]
    orbit = rescaled(model, names)
    assert len(orbit.acting) == len(sites) >= 1
    elements = random_elements(orbit, parameters, 2, generator())
    psi = mean_curvature(orbit, parameters, elements)
    numeric = finite_difference_psi(orbit, parameters, [[0.1 * t for t in e] for e in elements])
    torch.testing.assert_close(psi, numeric, rtol=1e-6, atol=0)


def test_of_a_network_it_is_of_all_sites_in_float64_and_of_the_seed():
    torch.manual_seed(0)
    layers = [nn.Linear(9, 8), nn.LeakyReLU(0.1), nn.Linear(8, 6), nn.LeakyReLU(0.1)]
    model = nn.Sequential(*layers, nn.Linear(6, 3))
    x = torch.randn(5, 9)
    psi = network_curvature(model, x, generator(2), curves=4)
    assert psi == network_curvature(model, x, generator(2), curves=4)
    assert psi != network_curvature(model, x, generator(3), curves=4)
    chain = LayerChain((LeakyReLU(0.1), LeakyReLU(0.1), Identity()), (True,) * 3)
    parameters = [p.detach().double() for p in model.parameters()]
    h = LayerInput(x.mT.double())
    orbit = chain_orbit(chain, parameters, h, make_action("post_activation"))
    elements = random_elements(orbit, parameters, 4, generator(2))
    assert psi == pytest.approx(mean_curvature(orbit, parameters, elements).item(), rel=1e-12)


def test_what_has_no_curve_is_refused():
    x = torch.randn(5, 9)
    with pytest.raises(UserError, match="expected a chain of Linear layers, whose orbits"):
        network_curvature(nn.Sequential(nn.Linear(9, 4), nn.LayerNorm(4)), x, generator())
    with pytest.raises(UserError, match="expected a model with two layers or more, got one"):
        network_curvature(nn.Sequential(nn.Linear(9, 4)), x, generator())
    model = nn.Sequential(nn.Linear(9, 4), nn.Tanh(), nn.Linear(4, 2))
    with pytest.raises(UserError, match="expected a bijective activation"):
        network_curvature(model, x, generator())
    with pytest.raises(UserError, match="expected 1 curve or more, got 0"):
        network_curvature(model, x, generator(), curves=0)
    objective = Negated(Curvature([]))
    with pytest.raises(UserError, match="expected an objective on an orbit, got Curvature"):
        objective([], None)
    assert math.isnan(curvature([torch.zeros(2)], [torch.ones(2)]).item())


@pytest.mark.parametrize(
    "elements",
    [
        [],
        [[torch.randn(6)]],
        [[torch.tensor(1.0)]],
        [[torch.randn(1, 6, 6)]],
        [[torch.randn(6, 6), torch.randn(6, 6)]],
        [[torch.randn(5, 5)]],
    ],
    ids=lambda elements: str([tuple(t.shape) for e in elements for t in e]),
)
def test_elements_of_other_shapes_are_refused(elements):
    orbit, parameters = orbit_of(LeakyReLU(0.1), "post_activation")
    with pytest.raises(UserError, match=r"expected elements of shapes .*one a site"):
        mean_curvature(orbit, parameters, elements)


def test_an_objective_by_itself_is_no_search():
    model = nn.Sequential(nn.Linear(9, 4), nn.LeakyReLU(0.1), nn.Linear(4, 2))
    base = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(UserError, match="expected a search, called with an orbit"):
        TeleportingOptimizer(base, model, nn.CrossEntropyLoss(), search=Negated(Curvature([])))


def test_the_parameters_that_move_are_those_that_objectives_see():
    model = nn.Sequential(nn.Linear(9, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).double()
    x, y = torch.randn(6, 9).double(), torch.arange(6) % 2
    seen = []

    def objective(parameters, loss):
        seen.append([p.detach().clone() for p in parameters])
        return sum(p.sum() for p in parameters)

    optimizer = TeleportingOptimizer(
        torch.optim.SGD(model.parameters(), 0.1),
        model,
        nn.CrossEntropyLoss(),
        search=GradientAscent(1, objective=objective),
    )
    moving = [p.detach().clone() for p in optimizer.moving]
    assert [type(action) for _, action in optimizer.orbit(x, y).acting] == [RescalingAction]
    optimizer.teleport(x, y)
    for mine, given in zip(moving, seen[0], strict=True):
        assert torch.equal(mine, given)
    assert len(moving) < len(list(model.parameters()))
