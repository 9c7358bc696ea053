"""The update rule a tensor at a time over a whole run: its end, its depth, and its rate."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from own_tasks import Images
from torch import nn

from metaopt.learned import tensorwise
from metaopt.learned.meta_optimizer import MetaOptimizer, MetaOptimizerSpec
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.tasks import stacked


def build() -> MetaOptimizer:
    return MetaOptimizer(MetaOptimizerSpec(update="tensorwise", element="none", hidden=5), 0)


def network(layers: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 32), *(nn.Linear(32, 32) for _ in range(layers)), nn.Linear(32, 3)
    )


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    """With gradients of 1 where they are required."""
    for _ in range(count):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
        optimizer.step()


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def moved(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    before = weights(model)
    steps(model, optimizer, 1)
    return {name: value - before[name] for name, value in weights(model).items()}


def test_layers_that_are_unfrozen_later_count_from_then_on():
    always, late = network(), network()
    for layer in list(late)[:2]:
        layer.requires_grad_(False)
    optimizer = LearnedOptimizer(late, build())
    late.requires_grad_(True)
    expected = moved(always, LearnedOptimizer(always, build()))
    for name, value in moved(late, optimizer).items():
        torch.testing.assert_close(value, expected[name])


def test_layers_that_are_frozen_later_count_no_more():
    one, other = network(), network()
    one[1].requires_grad_(False)
    built, frozen = LearnedOptimizer(one, build()), LearnedOptimizer(other, build())
    other[1].requires_grad_(False)
    expected = moved(one, built)
    for name, value in moved(other, frozen).items():
        torch.testing.assert_close(value, expected[name])


def test_steps_of_the_deepest_networks_shorten_no_more(monkeypatch):
    monkeypatch.setattr(tensorwise, "DECAY", 0.0)
    lengths = {}
    for layers in (5, 23, 47):  # and the first layer is one too
        model = network(layers)
        lengths[layers] = moved(model, LearnedOptimizer(model, build()))["0.bias"].norm()
    torch.testing.assert_close(lengths[47], lengths[23])
    torch.testing.assert_close(lengths[23], lengths[5] / 2)


def test_a_group_that_is_added_late_ends_with_the_run():
    model = network()
    optimizer = LearnedOptimizer([{"params": list(model[0].parameters())}], build(), total_steps=10)
    steps(model, optimizer, 6)
    optimizer.add_param_group({"params": list(model[3].parameters())})
    steps(model, optimizer, 4)
    before = weights(model)
    with pytest.warns(UserWarning, match="total_steps=10 are made"):
        steps(model, optimizer, 2)
    for name, value in weights(model).items():
        assert torch.equal(value, before[name]), name


def test_what_is_trained_after_something_else_ends_with_the_run():
    model = network()
    optimizer = LearnedOptimizer(model, build(), total_steps=10)
    model[0].requires_grad_(False)
    steps(model, optimizer, 5)
    model.requires_grad_(False)
    model[0].requires_grad_(True)
    first = moved(model, optimizer)["0.weight"].norm()
    steps(model, optimizer, 3)
    last = moved(model, optimizer)["0.weight"].norm()
    assert 0 < last < first / 2
    with pytest.warns(UserWarning, match="total_steps=10 are made"):
        assert not moved(model, optimizer)["0.weight"].any()


def test_a_state_of_a_run_that_has_ended_says_so_once_more():
    model = network()
    optimizer = LearnedOptimizer(model, build(), total_steps=3)
    with pytest.warns(UserWarning, match="total_steps=3 are made"):
        steps(model, optimizer, 5)
    resumed = LearnedOptimizer(model, build(), total_steps=100)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with pytest.warns(UserWarning, match="total_steps=3 are made"):
        steps(model, resumed, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(model, resumed, 3)
    for group in resumed.param_groups:
        group["total_steps"] = 100
    assert moved(model, resumed)["0.weight"].any()


def test_the_path_is_as_long_as_the_rate_makes_it(monkeypatch):
    monkeypatch.setattr(tensorwise, "DECAY", 0.0)
    paths = {}
    for rate in (1.0, 0.1):
        model = network()
        optimizer = LearnedOptimizer(model, build(), lr=rate)
        steps(model, optimizer, 3)
        numbers = optimizer.learned_state["update"][2 * len(optimizer.meta.update.lstm.layers)]
        paths[rate] = numbers[tensorwise.NUMBERS.index("path")]
    torch.testing.assert_close(paths[0.1], paths[1.0] / 10)


def test_decay_does_not_turn_weights_round_at_a_high_rate():
    model = network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e-6)
    optimizer = LearnedOptimizer(model, build(), lr=10.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
        parameter.grad.view(-1)[0] = 1.0  # the others only decay
    before = weights(model)
    optimizer.step()
    for name, value in weights(model).items():
        if value.dim() == 2 and value.shape[0] > 1:
            others = value.view(-1)[1:], before[name].view(-1)[1:]
            assert (others[0] * others[1] >= 0).float().mean() > 0.4


def test_a_batch_of_tasks_is_told_the_number_of_steps():
    ends = []
    for told in (0, 4):
        tasks = stacked(Images(), [1, 2])
        optimizer = LearnedOptimizer(tasks, build(), total_steps=told)
        for step in range(5):
            before = [p.detach().clone() for p in tasks.parameters()]
            optimizer.zero_grad()
            tasks(step).sum().backward()
            optimizer.step()
        pairs = zip(before, tasks.parameters(), strict=True)
        ends.append(max(float((b - p.detach()).abs().max()) for b, p in pairs))
    assert ends[0] > 0
    assert ends[1] == 0
