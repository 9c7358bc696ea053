"""What is computed once, or together, in place of several times: it is the same."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from metaopt.evaluation.rollout import rollout
from metaopt.learned.checkpoint import load_meta_optimizer
from metaopt.learned.kronecker import decomposed
from metaopt.learned.module_stepper import CONFIRMED
from metaopt.learned.observation import Observation, SeenLoss
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.symmetry import find_sites
from metaopt.symmetry.activations import (
    Elementwise,
    Identity,
    LeakyReLU,
    derivative,
    with_derivative,
)
from metaopt.symmetry.inputs import LayerInput, eigen
from metaopt.symmetry.teleportation import ChainOutputs
from metaopt.tasks import NetworkFamily, RegressionFamily

ACTIVATIONS = {
    "identity": Identity(),
    "relu": LeakyReLU(0.0),
    "leaky": LeakyReLU(0.3),
    "tanh": Elementwise("Tanh", torch.tanh),
    "sigmoid": Elementwise("Sigmoid", torch.sigmoid),
    "gelu": Elementwise("GELU", functional.gelu),
    "unhashable": Elementwise(
        "f", type("F", (), {"__call__": lambda _, z: z**2, "__hash__": None})()
    ),
}


def normal(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_comes_with_its_derivative(name, inference):
    activation, z = ACTIVATIONS[name], normal(3, 5)
    with torch.inference_mode(inference):
        values, slopes = with_derivative(activation, z.clone())
    torch.testing.assert_close(values, activation(z), rtol=1e-12, atol=1e-12)
    slopes = torch.ones_like(z) if slopes is None else slopes
    assert slopes.dtype == torch.float64
    torch.testing.assert_close(slopes, derivative(activation, z), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("module", [nn.Tanh(), nn.Sigmoid(), nn.Softplus(beta=2.0)])
def test_so_does_that_of_a_module_in_a_chain(module):
    model = nn.Sequential(nn.Linear(3, 4), module, nn.Linear(4, 2))
    activation, z = find_sites(model).chain.activations[0], normal(3, 5)
    slopes = with_derivative(activation, z)[1]
    torch.testing.assert_close(slopes, derivative(activation, z), rtol=1e-12, atol=1e-12)


def test_matrices_of_several_sizes_are_decomposed_each():
    matrices = [a @ a.mT for a in (normal(2, 3, 5), normal(2, 4, 5), 2 * normal(2, 3, 5))]
    matrices[2][1, 0, 0] = math.inf
    for own, found in zip(matrices, decomposed(matrices), strict=True):
        again = found.vectors @ torch.diag_embed(found.values) @ found.vectors.mT
        torch.testing.assert_close(again[0], own[0])
    torch.testing.assert_close(found.values[1], torch.ones(3).double())


def test_moments_of_an_input_are_kept_with_it():
    x = normal(2, 3, 5)
    given = LayerInput(x)
    assert given.with_ones.moment is given.with_ones.moment
    torch.testing.assert_close(given.moment.values, eigen(x @ x.mT).values)


def test_outputs_at_several_points_are_those_at_each():
    tasks = NetworkFamily(4, 5, 2, depth=3, samples=9, activation="tanh").sample([1, 2])
    outputs = ChainOutputs(tasks.chain, tasks.x)
    points = [[factor * p.detach() for p in tasks.parameters()] for factor in (1.0, 2.0)]
    for own, point in zip(outputs.of_all(points), points, strict=True):
        torch.testing.assert_close(own, outputs(point))


def test_one_task_is_stepped_as_plain_matrices_and_as_one_of_two():
    # On some seeds m2, in float32, rounds another way, and makes 1e-7 of it in a step.
    together, alone = (RegressionFamily(dtype="float64").sample(s) for s in ([7, 8], [7]))
    for tasks in (together, alone):
        optimizer = LearnedOptimizer(tasks, "lstm_update_tele")
        rollout(tasks, optimizer, 3)
        move = optimizer.teleportation
        assert move.rejected.shape == move.invariance_error().shape == tasks.x.shape[:1]
        assert move.stayed.shape == tasks.x.shape[:1]
        assert [a.shape for a in move.after] == [p.shape for p in tasks.parameters()]
    for joint, own in zip(together.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(own, joint[:1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("seed", [3, 5])
def test_m1_steps_one_task_alone_as_beside_others_bit_for_bit(seed):
    together, alone = (
        RegressionFamily(dtype="float64").sample(seeds) for seeds in ([seed, seed + 1], [seed])
    )
    for tasks in (together, alone):
        rollout(tasks, LearnedOptimizer(tasks, "lstm_whitened"), 4)
    for joint, own in zip(together.parameters(), alone.parameters(), strict=True):
        assert torch.equal(own, joint[:1])


def test_a_proposal_is_the_same_with_a_graph_and_without_and_can_be_written_to():
    tasks = NetworkFamily(4, 5, 2, depth=3, samples=9, activation="tanh").sample([1, 2])
    rule = load_meta_optimizer("lstm_whitened").update
    parameters = [p.detach() for p in tasks.parameters()]
    losses = tasks()
    gradients = torch.autograd.grad(losses.sum(), list(tasks.parameters()))
    seen = [SeenLoss(losses.detach()) for _ in range(2)]
    state = rule.init_state(tasks.chain, parameters)
    found = []
    for enabled, loss in zip((True, False), seen, strict=True):
        own = Observation.of(tasks.chain, parameters, gradients, tasks.x, loss=loss)
        with torch.set_grad_enabled(enabled):
            found.append(rule.propose(own, state))
    for one, other in zip(*([*update, *following] for update, following in found), strict=True):
        torch.testing.assert_close(one, other)
        other.detach().add_(1.0)  # refused of a tensor of inference mode


def test_a_loss_that_turns_into_a_cross_entropy_is_recognised_again():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    x, labels = torch.randn(20, 4), torch.arange(20) % 3
    y = functional.one_hot(labels).float()
    optimizer = LearnedOptimizer(model, "lstm_whitened")

    def step(loss_fn, target):
        optimizer.zero_grad()
        loss_fn(model(x), target).backward()
        optimizer.step()
        return float(optimizer.learned_state["kind"][0])

    kinds = [step(functional.mse_loss, y) for _ in range(4)]
    assert kinds[-2:] == [CONFIRMED, CONFIRMED]
    assert step(functional.cross_entropy, labels) > CONFIRMED
