"""Levenberg-Marquardt: its step, its descent, and what it refuses."""

import copy
import math

import pytest
import torch

from metaopt import UserError
from metaopt.evaluation.rollout import rollout
from metaopt.optim import LevenbergMarquardt
from metaopt.tasks import Regression, RegressionFamily

SEEDS = (1, 2, 3)


def naive_step(problem: Regression, damping: float) -> torch.Tensor:
    """w - (J^T J + lambda I)^-1 J^T r of one problem, J by central differences."""
    weights = [p.detach()[0] for p in problem.parameters()]
    flat = torch.cat([w.reshape(-1) for w in weights])

    def residuals(vector: torch.Tensor) -> torch.Tensor:
        w1, w2 = (
            piece.reshape(w.shape)
            for piece, w in zip(vector.split([w.numel() for w in weights]), weights, strict=True)
        )
        z = w1 @ problem.x[0]
        return (w2 @ torch.where(z > 0, z, 0.1 * z) - problem.y[0]).reshape(-1)

    columns = []
    for i in range(len(flat)):
        shift = torch.zeros_like(flat)
        shift[i] = 1e-6
        columns.append((residuals(flat + shift) - residuals(flat - shift)) / 2e-6)
    j = torch.stack(columns, dim=1)
    smaller = j @ j.mT if j.shape[0] <= j.shape[1] else j.mT @ j
    normal = j.mT @ j + damping * smaller.diagonal().mean() * torch.eye(len(flat)).double()
    return flat - torch.linalg.solve(normal, j.mT @ residuals(flat))


@pytest.mark.parametrize("samples", [3, 20])  # fewer residuals than weights, and more
def test_the_first_step_is_the_formula(samples):
    problem = RegressionFamily(samples, 4, 3, 2, dtype="float64").sample([1])
    expected = naive_step(problem, 0.01)
    LevenbergMarquardt(problem, damping=0.01).step()
    flat = torch.cat([p.detach()[0].reshape(-1) for p in problem.parameters()])
    torch.testing.assert_close(flat, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("depth", [2, 3])
def test_the_loss_never_rises_and_reaches_the_floor(dtype, depth):
    problem = RegressionFamily(5, 6, 5, 4, depth=depth, dtype=dtype).sample(SEEDS)
    losses = rollout(problem, LevenbergMarquardt(problem), 40).losses
    assert (losses[1:] <= losses[:-1] + 1e-9).all()  # float32 forward passes round
    assert losses[-1].max() < (1e-20 if dtype == "float64" else 1e-7)


@pytest.mark.parametrize("how", ["state_dict", "deepcopy"])
def test_dampings_come_along_with_the_optimizer(how):
    def make():
        problem = RegressionFamily(5, 6, 5, 4, dtype="float64").sample(SEEDS)
        return problem, LevenbergMarquardt(problem)

    problem, optimizer = make()
    rollout(problem, optimizer, 3)
    if how == "deepcopy":
        other, copied = copy.deepcopy((problem, optimizer))
    else:
        other, copied = make()
        other.load_state_dict(problem.state_dict())
        copied.load_state_dict(optimizer.state_dict())
    expected = rollout(problem, optimizer, 3).losses
    assert torch.equal(rollout(other, copied, 3).losses, expected)
    assert torch.equal(copied.dampings, optimizer.dampings)


def test_a_problem_that_is_not_finite_stays_where_it_is():
    problem = RegressionFamily(5, 6, 5, 4).sample(SEEDS)
    with torch.no_grad():
        problem.W1[1, 0, 0] = math.inf
    before = problem.W2.detach().clone()
    LevenbergMarquardt(problem).step()
    assert torch.equal(problem.W2[1], before[1])
    assert not torch.equal(problem.W2[0], before[0])


@pytest.mark.parametrize("options", [{"damping": 0.0}, {"factor": 1.0}])
def test_bad_options_are_refused(options):
    with pytest.raises(UserError, match=r"^expected .*, got .*$"):
        LevenbergMarquardt(RegressionFamily().sample([0]), **options)
