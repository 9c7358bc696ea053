"""Baselines of m2 by formula, and m1 with the covariance."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaopt.learned.baselines import GradientDirection, Whitening
from metaopt.learned.observation import Observation, log_sign
from metaopt.learned.update import hidden_covariance
from metaopt.symmetry import (
    Element,
    Identity,
    LayerChain,
    LayerInput,
    LeakyReLU,
    chain_orbit,
    make_action,
)
from metaopt.tasks import Regression, RegressionFamily

FAMILY = RegressionFamily(samples=4, input=6, hidden=3, output=5, dtype="float64")
SEEDS = (3, 4)


def observe(tasks: nn.Module) -> Observation:
    parameters = list(tasks.parameters())
    gradients = torch.autograd.grad(tasks().sum(), parameters)
    return Observation.of(tasks.chain, parameters, gradients, tasks.x)


def moved(tasks: Regression, elements: list[Element]) -> list[Tensor]:
    """The weights after the elements acted by eq. 78."""
    parameters = list(tasks.parameters())
    action = make_action("post_activation")
    orbit = chain_orbit(tasks.chain, parameters, LayerInput(tasks.x), action)
    point = orbit.move(parameters, elements)
    assert not point.rejected.any()
    return point.parameters


def features(tasks: Regression, weights: list[Tensor]) -> Tensor:
    return tasks.chain.inputs(tasks.chain.layers(weights), tasks.x)[1]


@pytest.mark.parametrize("fraction", [0.25, 1.0])
def test_whitening_takes_a_power_of_the_covariance(fraction):
    tasks = FAMILY.sample(SEEDS)
    before = features(tasks, list(tasks.parameters()))
    elements, _ = Whitening(fraction).propose(observe(tasks), [])
    after = features(tasks, moved(tasks, elements))
    for b in range(len(SEEDS)):
        c = before[b] @ before[b].mT
        scale = c.diagonal().mean()
        values, vectors = torch.linalg.eigh(c / scale)
        expected = scale * vectors @ torch.diag(values ** (1 - fraction)) @ vectors.mT
        torch.testing.assert_close(after[b] @ after[b].mT, expected, rtol=1e-4, atol=1e-4)


def test_whitening_of_features_that_are_not_finite_proposes_nothing():
    tasks = FAMILY.sample(SEEDS)
    with torch.no_grad():
        tasks.W1[1, 0, 0] = torch.nan
    elements, _ = Whitening(0.5).propose(observe(tasks), [])
    assert elements[0].values[0].any()
    assert torch.equal(elements[0].values[1], torch.zeros(3))


def linear(tasks: Regression) -> Regression:
    """The same tasks without an activation."""
    tasks.chain = LayerChain((Identity(), Identity()), (False, False), 1)
    return tasks


def test_gradient_direction_is_the_derivative_of_the_gradient_norm_of_a_linear_network():
    tasks = linear(FAMILY.sample(SEEDS))
    (element,), _ = GradientDirection(0.3).propose(observe(tasks), [])
    parameters = [p.detach() for p in tasks.parameters()]

    def gradient_norm(t: Tensor) -> Tensor:
        g = torch.linalg.matrix_exp(t)
        w = [g @ parameters[0], parameters[1] @ torch.linalg.inv(g)]
        loss = functional_call(tasks, {"W1": w[0], "W2": w[1]}, ()).sum()
        return sum(d.square().sum() for d in torch.autograd.grad(loss, w, create_graph=True))

    t = torch.zeros(2, 3, 3).double().requires_grad_()
    (derivative,) = torch.autograd.grad(gradient_norm(t), t)
    assert torch.linalg.matrix_norm(element.values).tolist() == pytest.approx([0.3, 0.3], rel=1e-5)
    for b in range(2):
        cosine = torch.nn.functional.cosine_similarity(
            element.values[b].double().flatten(), derivative[b].flatten(), dim=0
        )
        assert cosine.item() == pytest.approx(1.0, abs=1e-6)


def test_the_covariance_that_m1_sees_is_the_gradient_times_the_covariance_on_its_side():
    tasks = FAMILY.sample(SEEDS)
    seen = observe(tasks)
    above = [[], []]
    for b in range(2):
        h = LeakyReLU(0.1)(seen.parameters[0][b] @ seen.x[b])
        c = h @ h.mT
        c = c / c.diagonal().mean()
        above[0].append(c @ seen.gradients[0][b])
        above[1].append(seen.gradients[1][b] @ c)
    incoming, outgoing = (torch.stack(matrices).flatten() for matrices in above)
    zeros = torch.zeros_like(incoming), torch.zeros_like(outgoing)
    expected = [
        *log_sign(torch.cat((zeros[0], outgoing))),
        *log_sign(torch.cat((incoming, zeros[1]))),
    ]
    for own, twin in zip(hidden_covariance(seen), expected, strict=True):
        torch.testing.assert_close(own, twin, rtol=1e-4, atol=1e-5)
