"""Teleports on several minibatches (section 5.1)."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from metaopt import TeleportingOptimizer, UserError, tasks
from metaopt.symmetry import GradientAscent, Teleportation

LOSS = nn.CrossEntropyLoss()
QUICK = GradientAscent(iterations=2, initial_step=0.3)


def setting(action, samples=5, count=4, base=torch.optim.Adam, **options):
    torch.manual_seed(0)
    layers = nn.Linear(9, 7), nn.LeakyReLU(0.1), nn.Linear(7, 6), nn.LeakyReLU(0.1)
    model = nn.Sequential(*layers, nn.Linear(6, 3)).double()
    batches = [(torch.randn(samples, 9).double(), torch.arange(samples) % 3) for _ in range(count)]
    options = {"search": QUICK, "buffers": "transport", **options}
    optimizer = TeleportingOptimizer(
        base(model.parameters(), lr=1e-2), model, LOSS, action, **options
    )
    LOSS(model(batches[0][0]), batches[0][1]).backward()
    optimizer.step()
    return model, optimizer, batches


def whole_errors(optimizer, moves, batches):
    """Of the way from the start of all moves to their end, on each minibatch."""
    first, last = moves[0], moves[-1]
    whole = Teleportation(first.outputs, first.before, last.after, last.rejected)
    return [whole.invariance_error(x).item() for x, _ in batches]


@pytest.mark.parametrize("action", ["rescaling", "post_activation", "pre_activation"])
def test_without_a_limit_they_are_teleports_one_after_another_bit_for_bit(action):
    model, optimizer, batches = setting(action, max_defect=float("inf"))
    twin, other, _ = setting(action, max_defect=float("inf"))
    moves = optimizer.teleport_on(iter(batches))
    for x, y in batches:
        other.teleport(x, y)
    for own, expected in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(own, expected)
        for key, value in optimizer.base.state[own].items():
            assert torch.equal(value, other.base.state[expected][key])
    for move, following in pairwise(moves):
        assert all(torch.equal(a, b) for a, b in zip(move.after, following.before, strict=True))


def test_under_rescaling_the_whole_way_is_exact_on_each_of_them():
    _, optimizer, batches = setting("rescaling")
    moves = optimizer.teleport_on(batches)
    assert max(whole_errors(optimizer, moves, batches)) < 1e-12
    assert optimizer.undone == 0


@pytest.mark.parametrize("action", ["post_activation", "pre_activation"])
def test_a_group_that_acts_through_the_data_is_held_to_the_limit_on_all_of_them(action):
    _, free, batches = setting(action, max_defect=1e9)
    limit = 0.3 * max(whole_errors(free, free.teleport_on(batches), batches))
    _, optimizer, batches = setting(action, max_defect=limit)
    moves = optimizer.teleport_on(batches)
    assert optimizer.undone > 0
    assert max(whole_errors(optimizer, moves, batches)) <= limit
    assert max(move.invariance_error() for move in moves) < 1e-8, "each is exact on its own"


def test_a_reverted_one_leaves_weights_and_buffers_to_the_others():
    _, optimizer, batches = setting("post_activation", max_defect=1e-7)
    held_out = torch.randn(30, 9).double()
    before = copy.deepcopy((optimizer.model.state_dict(), optimizer.base.state_dict()))
    moves = optimizer.teleport_on(batches, held_out)
    assert optimizer.undone == len(moves) == 4
    assert str((optimizer.model.state_dict(), optimizer.base.state_dict())) == str(before)


def test_momentum_transported_through_all_of_them_is_the_gradient_at_the_end():
    model, optimizer, batches = setting("rescaling", base=torch.optim.SGD)
    optimizer.base.param_groups[0].update(lr=0.0, momentum=0.9)
    x, y = batches[0]
    optimizer.zero_grad()
    LOSS(model(x), y).backward()
    optimizer.step()
    optimizer.teleport_on(batches)
    gradients = torch.autograd.grad(LOSS(model(x), y), list(model.parameters()))
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        momentum = optimizer.base.state[parameter]["momentum_buffer"]
        torch.testing.assert_close(momentum, gradient, rtol=1e-9, atol=1e-12)


def test_a_batch_of_tasks_has_no_minibatches():
    batch = tasks.RegressionFamily(3, 3, 3, 3).sample([0])
    base = torch.optim.SGD(batch.parameters(), lr=1e-4)
    with pytest.raises(UserError, match="expected a network for minibatches"):
        TeleportingOptimizer(base, batch).teleport_on([])
