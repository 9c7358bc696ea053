"""One task of a batch whose loss is not finite: its weights stay, and the others are stepped."""

from __future__ import annotations

import math

import pytest
import torch
from own_tasks import Images

from metaopt import LearnedOptimizer
from metaopt.evaluation.rollout import rollout
from metaopt.learned.meta_optimizer import MetaOptimizer, MetaOptimizerSpec
from metaopt.tasks import RegressionFamily
from metaopt.tasks.stacked import stacked

SEEDS = [3, 1, 4]
CHAINS = {
    "coordinatewise": MetaOptimizerSpec(element="none"),
    "whitened": MetaOptimizerSpec(update="whitened", element="none"),
    "tensorwise": MetaOptimizerSpec(update="tensorwise", element="none"),
    "layerwise": MetaOptimizerSpec(update="layerwise", element="none"),
    "teleporting": MetaOptimizerSpec(),
}


def chains(seeds, lost=None):
    tasks = RegressionFamily(4, 5, 6, 3, dtype="float64").sample(seeds)
    if lost is not None:
        tasks.y[lost, 0, 0] = math.nan
    return tasks


def built(name):
    meta = MetaOptimizer(CHAINS[name], seed=1).requires_grad_(False)
    with torch.no_grad():
        for parameter in meta.parameters():
            parameter.add_(0.01)
    return meta


@pytest.mark.parametrize("name", CHAINS)
def test_the_weights_of_a_lost_task_stay_and_are_counted_and_the_others_are_as_without_it(name):
    ends = []
    for lost in (None, 1):
        tasks = chains(SEEDS, lost)
        before = [p.detach().clone() for p in tasks.parameters()]
        optimizer = LearnedOptimizer(tasks, built(name))
        losses = rollout(tasks, optimizer, 4).losses
        ends.append([p.detach() for p in tasks.parameters()])
        assert optimizer.skipped == (0 if lost is None else 4)
        if lost is not None:
            assert all(
                torch.equal(own[lost], b[lost]) for own, b in zip(ends[-1], before, strict=True)
            )
            assert losses.isnan().tolist() == [[False, True, False]] * 5  # which is not hidden
            assert "Steps skipped, not finite: 4" in optimizer.report()
    for plain, other in zip(*ends, strict=True):
        torch.testing.assert_close(plain[[0, 2]], other[[0, 2]])
        assert not torch.equal(plain[1], other[1])


@pytest.mark.parametrize("name", CHAINS)
def test_the_weights_of_a_single_lost_task_stay_and_are_counted(name):
    tasks = chains([3], 0)
    before = [p.detach().clone() for p in tasks.parameters()]
    optimizer = LearnedOptimizer(tasks, built(name))
    assert rollout(tasks, optimizer, 3).losses.isnan().all()
    assert optimizer.skipped == 3
    for own, b in zip(tasks.parameters(), before, strict=True):
        assert torch.equal(own, b)


class OneBad(Images):
    """The second batch of seed 1 is not finite."""

    def batches(self, seed, split):
        for number, batch in enumerate(super().batches(seed, split)):
            if (seed, number, split) == (1, 1, "train"):
                batch["x"][0] = math.inf
            yield batch

    def model(self, seed):
        network = super().model(seed)
        network[1] = torch.nn.Identity()  # which has no statistics to spoil
        return network


@pytest.mark.parametrize("name", ["coordinatewise", "tensorwise", "layerwise"])
def test_a_task_goes_on_after_a_batch_that_is_not_finite(name):
    spec = MetaOptimizerSpec(update=name, element="none", heads=("plain",))
    tasks = stacked(OneBad(), SEEDS)
    optimizer = LearnedOptimizer(tasks, MetaOptimizer(spec, seed=2).requires_grad_(False))
    losses = rollout(tasks, optimizer, 6).losses
    assert optimizer.skipped == 1
    finite = torch.ones(7, 3, dtype=torch.bool)
    finite[1, 1] = False
    assert torch.equal(losses.isfinite(), finite)
    state = optimizer.learned_state["update"]
    assert all(tensor.isfinite().all() for tensor in state)
