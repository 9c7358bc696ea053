"""m2 over eigen-directions: the decomposition, its symmetry, and what bounds it."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from metaopt.learned.element import site_gate
from metaopt.learned.observation import Observation, log_sign, square_spectral_norm
from metaopt.learned.spectral import (
    DIRECTION_FEATURES,
    SMALLEST,
    SpectralElement,
    SpectralElementConfig,
    Spectrum,
)
from metaopt.symmetry import Element, LayerInput, chain_orbit, make_action
from metaopt.tasks import Regression, RegressionFamily

FAMILY = RegressionFamily(samples=5, input=6, hidden=4, output=3, depth=3)
FEATURES = tuple(DIRECTION_FEATURES)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def observe(tasks: nn.Module) -> Observation:
    parameters = list(tasks.parameters())
    gradients = torch.autograd.grad(tasks().sum(), parameters)
    return Observation.of(tasks.chain, parameters, gradients, tasks.x)


@dataclass(frozen=True)
class AnyBound(SpectralElementConfig):
    largest: ClassVar[float] = 1e9


def make(bound: float = 8.0, gain: float = 0.0, features=FEATURES, pre=False) -> SpectralElement:
    config = AnyBound(hidden=5, features=features, stretch=0.1, bound=bound, gate=gain)
    rule = SpectralElement(config, pre, generator(1))
    nn.init.normal_(rule.lstm.head_weight, generator=generator(2))
    return rule


def propose(rule: SpectralElement, seen: Observation, parameters) -> list[Tensor]:
    elements, _ = rule.propose(seen, rule.init_state(seen.chain, parameters))
    return [element.dense().float() for element in elements]


def proposed(rule: SpectralElement, tasks: Regression) -> list[Tensor]:
    return propose(rule, observe(tasks), list(tasks.parameters()))


@pytest.mark.parametrize("samples", [2, 9])  # of rank 2, and of full rank
def test_the_spectrum_gives_the_covariance_back(samples):
    h = normal(3, 4, samples)
    spectrum = Spectrum.of(h)
    scale = spectrum.log_scale.exp()[..., None]
    again = (
        scale * (spectrum.vectors * spectrum.log_values.exp().unsqueeze(-2)) @ spectrum.vectors.mT
    )
    torch.testing.assert_close(again.double(), h @ h.mT, rtol=1e-4, atol=1e-4)
    assert (spectrum.log_values >= math.log(SMALLEST) - 1e-5).all()
    assert spectrum.log_values.exp().mean(-1).tolist() == pytest.approx([1.0] * 3, rel=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, 1e30])
def test_a_task_without_a_spectrum_has_that_of_the_identity_and_leaves_the_others_alone(value):
    h = normal(3, 4, 6)
    whole = Spectrum.of(h)
    h[1] = value
    spectrum = Spectrum.of(h)
    assert all(tensor.isfinite().all() for tensor in spectrum)
    if value != 1e30:  # that one has a spectrum, of rank one
        assert not spectrum.log_values[1].any()
    for own, before in zip(spectrum, whole, strict=True):
        torch.testing.assert_close(own[[0, 2]], before[[0, 2]])


def test_t_whitens_and_stretches_as_the_network_says_in_the_eigenbasis():
    tasks = FAMILY.sample([1, 2])
    seen, rule = observe(tasks), make(bound=1e6, gain=30.0)
    elements = propose(rule, seen, list(tasks.parameters()))
    columns = []
    for site in tasks.chain.pairs:
        h = seen.inputs[site.outgoing].double()
        for b in range(2):
            c = h[b] @ h[b].mT
            scale = c.diagonal().mean()
            values, vectors = torch.linalg.eigh(c / scale)
            for i in range(4):
                v = vectors[:, i].float()
                sides = []
                for layers in (seen.layer_gradients, seen.layers):
                    sides.append((v @ layers[site.incoming].weight[b]).square().sum())
                    sides.append((layers[site.outgoing].weight[b] @ v).square().sum())
                pairs = [x for side in sides for x in log_sign(side)]
                columns.append(
                    [
                        *(float(x) for x in pairs),
                        float(values[i].log()) / 10,
                        float(scale.log()) / 10,
                    ]
                )
    x = torch.tensor(columns).T
    output = torch.tanh(rule.lstm(x, rule.lstm.init_state(x.shape[1]))[0]).double()
    whiten, stretch = output.view(2, 2, 2, 4)
    for s, site in enumerate(tasks.chain.pairs):
        h = seen.inputs[site.outgoing].double()
        gates = site_gate(seen, site, 30.0)
        for b in range(2):
            c = h[b] @ h[b].mT
            values, vectors = torch.linalg.eigh(c / c.diagonal().mean())
            t = (0.1 * stretch[s, b] - 0.5 * whiten[s, b] * values.log()) * gates[b]
            expected = vectors @ torch.diag(t) @ vectors.mT
            torch.testing.assert_close(elements[s][b].double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("samples", [2, 5])  # with two directions without features, and with none
@pytest.mark.parametrize("features", [*((name,) for name in FEATURES), FEATURES])
def test_hidden_units_turned_turn_the_element_with_them(features, samples):
    """In a linear network a turn of the hidden units is a symmetry too."""
    tasks = RegressionFamily(samples, input=6, hidden=4, output=3, slope=1.0).sample([1])
    q, _ = torch.linalg.qr(normal(4, 4, seed=5).float())
    w1, w2 = (p.detach() for p in tasks.parameters())
    turned = Regression([q @ w1, w2 @ q.mT], tasks.x, tasks.y, slope=1.0)
    rule = make(features=features)
    (element,), (other,) = proposed(rule, tasks), proposed(rule, turned)
    assert element.abs().max() > 0.01
    torch.testing.assert_close(other, q @ element @ q.mT, rtol=1e-2, atol=2e-3)


def test_elements_are_symmetric_and_each_direction_is_kept_to_the_bound():
    tasks = FAMILY.sample(range(6))
    seen, weights = observe(tasks), list(tasks.parameters())
    free, bounded = (
        torch.stack([e.values for e in r.propose(seen, r.init_state(seen.chain, weights))[0]])
        for r in (make(bound=1e6), make(bound=0.1))
    )
    assert free.abs().max() > 0.1
    torch.testing.assert_close(bounded, 0.1 * torch.tanh(free / 0.1), rtol=1e-4, atol=1e-5)
    for element in proposed(make(), tasks):
        torch.testing.assert_close(element, element.mT, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("size", "rejected"), [(3.0, False), (7.9, False), (8.1, True)])
def test_wide_sites_take_spectral_elements_as_large_in_each_direction_as_narrow_ones(
    size, rejected
):
    tasks = RegressionFamily(5, 5, 150, 3, dtype="float64").sample([1])
    values = torch.full((1, 150), size, dtype=torch.float64)
    basis = torch.linalg.qr(normal(1, 150, 150))[0]
    parameters = [p.detach() for p in tasks.parameters()]
    action = make_action("post_activation")
    orbit = chain_orbit(tasks.chain, parameters, LayerInput(tasks.x), action)
    assert orbit.move(parameters, [Element(values, basis)]).rejected.tolist() == [rejected]


def test_a_zero_head_proposes_nothing():
    rule = SpectralElement(SpectralElementConfig(hidden=5, stretch=0.1), False, generator())
    assert not any(element.any() for element in proposed(rule, FAMILY.sample([1])))


def test_eq_79_sees_the_features_before_the_activation():
    tasks = RegressionFamily(samples=5, input=6, hidden=4, output=3, distribution="normal").sample(
        [1]
    )
    seen = observe(tasks)
    rule = make(pre=True)
    (element,) = propose(rule, seen, list(tasks.parameters()))
    z = tasks.W1.detach() @ tasks.x
    c = (z @ z.mT)[0]
    torch.testing.assert_close(element[0] @ c, c @ element[0], rtol=1e-3, atol=1e-2)
    h = seen.inputs[1]
    other = (h @ h.mT)[0]
    assert (element[0] @ other - other @ element[0]).abs().max() > 0.1


@pytest.mark.parametrize("shape", [(2, 5, 3), (4, 4), (2, 2, 3, 8)])
def test_the_spectral_norm_is_bounded_from_both_sides(shape):
    matrix = normal(*shape, seed=3)
    exact = torch.linalg.matrix_norm(matrix, ord=2) ** 2
    own = square_spectral_norm(matrix)
    assert (own >= exact * (1 - 1e-9)).all()
    assert (own <= exact * min(shape[-2:]) ** 0.125 * (1 + 1e-9)).all()
    assert square_spectral_norm(torch.zeros(3, 2)).item() == 0.0
    assert square_spectral_norm(torch.full((3, 2), 1e15)).isfinite()
