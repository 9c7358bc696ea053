"""Copies of optimizers, and states that do not fit."""

import copy
import pickle

import pytest
import torch

from metaopt.errors import UserError
from metaopt.learned.meta_optimizer import MetaOptimizer, MetaOptimizerSpec
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.optim import TeleportingOptimizer
from metaopt.tasks import RegressionFamily

FAMILY = RegressionFamily(samples=4, input=5, hidden=6, output=3)


def learned(problem, element="coordinatewise"):
    return LearnedOptimizer(problem, MetaOptimizer(MetaOptimizerSpec(element=element), seed=3))


def teleporting(problem):
    base = torch.optim.SGD(problem.parameters(), lr=1e-3, momentum=0.9)
    return TeleportingOptimizer(base, problem, schedule=(2,))


def step(problem, optimizer):
    def closure():
        problem.zero_grad()
        loss = problem().sum()
        loss.backward()
        return loss

    optimizer.step(closure)


@pytest.mark.parametrize("build", [learned, teleporting])
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))]
)
def test_a_copy_of_problem_and_optimizer_goes_on_alike_and_apart(build, duplicate):
    problem = FAMILY.sample([1, 2])
    optimizer = build(problem)
    step(problem, optimizer)
    other_problem, other = duplicate((problem, optimizer))
    for _ in range(3):
        step(problem, optimizer)
    between = [p.clone() for p in other_problem.parameters()]
    for _ in range(3):
        step(other_problem, other)
    for p, q, start in zip(problem.parameters(), other_problem.parameters(), between, strict=True):
        assert torch.equal(p, q)
        assert not torch.equal(q, start)


def test_a_state_of_another_size_or_optimizer_is_refused():
    problem = FAMILY.sample([1, 2])
    optimizer = learned(problem)
    step(problem, optimizer)
    before = copy.deepcopy(optimizer.state_dict())
    for seeds, element in (([1, 2, 3], "coordinatewise"), ([1, 2], "spectral")):
        other = FAMILY.sample(seeds)
        wrong = learned(other, element)
        step(other, wrong)
        with pytest.raises(UserError, match="expected a state of this optimizer"):
            optimizer.load_state_dict(wrong.state_dict())
        torch.testing.assert_close(optimizer.state_dict(), before, rtol=0, atol=0)


def test_a_second_group_is_stepped_without_teleportation():
    problem = FAMILY.sample([1])
    optimizer = learned(problem)
    further = torch.ones(2, requires_grad=True)
    optimizer.add_param_group({"params": [further], "lr": 0.5})
    further.grad = torch.tensor([1.0, -1.0])
    step(problem, optimizer)
    assert further[0] < 1 < further[1]
    assert [len(stepper.parameters) for stepper in optimizer.steppers] == [2, 1]


def test_a_teleporting_optimizer_needs_a_base_of_the_models_parameters():
    problem = FAMILY.sample([1])
    base = torch.optim.SGD([torch.zeros(2, requires_grad=True)], lr=0.1)
    with pytest.raises(UserError, match="holds the model's parameters"):
        TeleportingOptimizer(base, problem)


def test_a_teleporting_optimizer_shows_its_bases_state_and_defaults():
    problem = FAMILY.sample([1])
    optimizer = teleporting(problem)
    step(problem, optimizer)
    assert optimizer.state is optimizer.base.state
    assert len(optimizer.state) == 2
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=5)
