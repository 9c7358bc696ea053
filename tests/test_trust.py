"""How far steps are trusted: sequences calculated by hand, and the steps that come of them."""

import math

import pytest
import torch
from learned_network_cases import batch_for, mlp, train, weights
from torch.nn import functional as F

from metaopt import LearnedOptimizer
from metaopt.learned import module_stepper
from metaopt.learned.meta_optimizer import MetaOptimizer, MetaOptimizerSpec
from metaopt.learned.trust import BACK, DECAY, LEAST, WORSE, trusted, untried

NAN, INF = math.nan, math.inf


def of_level(level: float, shape=(4, 3)) -> torch.Tensor:
    """A gradient of this level: the mean square of its entries times the samples."""
    signs = torch.ones(shape, dtype=torch.float64)
    signs.view(-1)[::2] = -1.0
    return signs * math.sqrt(level) / shape[0]


def follow(levels, same: bool = True) -> list[list[float]]:
    """[trust, level, least] after each."""
    state, states = untried(), []
    for level in levels:
        state = trusted(state, of_level(level), same)
        states.append(state.tolist())
    return states


def trusts(levels, same: bool = True) -> list[float]:
    return [trust for trust, _, _ in follow(levels, same)]


def test_the_constants_are_those_that_the_sequences_below_are_calculated_with():
    assert (WORSE, BACK, LEAST, DECAY) == (2.0, 1.1, 1e-3, 0.95)


def test_nothing_was_seen_and_all_is_trusted_at_first():
    assert untried().tolist() == [1.0, INF, INF]
    assert untried().dtype == torch.float64


@pytest.mark.parametrize("level", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("same", [True, False])
def test_the_first_gradient_sets_the_level_whatever_it_is(level, same):
    assert follow([level], same)[0] == pytest.approx([1.0, level, level], rel=1e-12)


@pytest.mark.parametrize("before", [untried(), torch.tensor([0.5, 2.0, 1.0]).double()])
def test_a_gradient_of_zero_says_nothing(before):
    assert torch.equal(trusted(before, torch.zeros(3), True), before)


def test_the_level_is_the_mean_square_of_all_entries_times_the_samples():
    state = trusted(untried(), torch.tensor([[1.0, -2.0], [3.0, 0.0]]), True)
    assert state.tolist() == [1.0, 4 * 3.5, 4 * 3.5]


def test_a_ragged_last_batch_under_a_mean_changes_little():
    state = untried()
    for samples in (64, 64, 64, 1, 64, 64):
        state = trusted(state, torch.ones(samples, 3) / samples, False)
    assert state[0] == 1.0


@pytest.mark.parametrize("same", [True, False])
def test_trust_is_full_while_levels_fall(same):
    states = follow([4.0, 3.0, 1.0, 0.5, 1e-9], same)
    assert [trust for trust, _, _ in states] == [1.0] * 5
    assert all(level == least for _, level, least in states)


@pytest.mark.parametrize(("level", "expected"), [(3.98, 1.0), (4.02, 0.5), (1e12, 0.5)])
def test_trust_is_halved_where_the_level_is_more_than_twice_the_least(level, expected):
    (*_, last) = follow([8.0, 2.0, level])
    assert last == pytest.approx([expected, level, 2.0], rel=1e-12)


def test_a_sequence_calculated_by_hand():
    levels = [4.0, 1.0, 3.0, 5.0, 1.9, 0.8, 1.5, 1.7, 0.5, 0.4]
    expected = [1.0, 1.0, 0.5, 0.25, 0.275, 0.3025, 0.33275, 0.166375, 0.1830125, 0.20131375]
    states = follow(levels)
    assert [state[0] for state in states] == pytest.approx(expected, rel=1e-12)
    assert [state[1] for state in states] == pytest.approx(levels, rel=1e-12)
    least = [4.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.8, 0.8, 0.5, 0.4]
    assert [state[2] for state in states] == pytest.approx(least, rel=1e-12)


def test_trust_comes_back_by_a_tenth_a_step_and_stops_at_one():
    (*_, first) = back = trusts([1.0, 3.0] + [1.0] * 9)[1:]
    assert back[:8] == pytest.approx([0.5 * 1.1**n for n in range(8)], rel=1e-12)
    assert back[7] < 1.0 == back[8] == first


@pytest.mark.parametrize("level", [1e6, NAN, INF])
def test_trust_has_a_floor_and_comes_back_from_there(level):
    found = trusts([1.0] + [level] * 30 + [1.0] * 2)
    assert found[1:10] == pytest.approx([0.5**n for n in range(1, 10)])
    assert found[10:31] == [1e-3] * 21
    assert found[31:] == pytest.approx([1.1e-3, 1.21e-3])


def test_levels_of_changing_batches_are_averaged():
    states = follow([1.0, 21.0, 2.0, 41.0], same=False)
    levels = [1.0, 2.0, 0.95 * 2.0 + 0.05 * 2.0, 0.95 * 2.0 + 0.05 * 41.0]
    assert [state[1] for state in states] == pytest.approx(levels, rel=1e-12)
    assert [state[2] for state in states] == [1.0] * 4
    assert states[0][0] == 1.0
    assert states[3][0] < states[2][0]


def test_an_average_that_is_more_than_twice_the_least_halves_trust():
    assert trusts([1.0, 20.0, 1.0], same=False) == [1.0, 1.0, 1.0]
    assert trusts([1.0, 22.0, 20.0], same=False) == pytest.approx([1.0, 0.5, 0.25])


def test_a_batch_that_comes_again_counts_in_full_after_others():
    state = trusted(untried(), of_level(1.0), False)
    state = trusted(state, of_level(3.0), False)
    assert state.tolist() == pytest.approx([1.0, 1.1, 1.0])
    state = trusted(state, of_level(3.0), True)
    assert state.tolist() == pytest.approx([0.5, 3.0, 1.0])


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_gradient_that_is_not_finite_halves_trust_and_keeps_the_rest(value, same):
    state = trusted(trusted(untried(), of_level(3.0), same), of_level(2.0), same)
    spoilt = of_level(1.0)
    spoilt[1, 2] = value
    lost = trusted(state, spoilt, same)
    assert lost.tolist() == [0.5, *state.tolist()[1:]]
    assert trusted(lost, spoilt, same).tolist() == [0.25, *state.tolist()[1:]]
    assert trusted(untried(), spoilt, same).tolist() == [0.5, INF, INF]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_squares_do_not_overflow_in_the_dtype_of_the_gradient(dtype):
    state = trusted(untried(), torch.full((5,), 1024.0, dtype=dtype), True)
    assert state.tolist() == [1.0, 25 * 2.0**20, 25 * 2.0**20]
    assert state.dtype == torch.float64


def test_the_state_before_is_not_written_to():
    state = trusted(untried(), of_level(1.0), True)
    kept = state.clone()
    trusted(state, of_level(9.0), True)
    assert torch.equal(state, kept)


def spiking(factor: float) -> tuple[list[torch.Tensor], float]:
    """(the step, trust) where the same batch comes again with so much more loss."""
    meta = MetaOptimizer(MetaOptimizerSpec(element="none", heads=("plain",), hidden=4))
    model, pair = mlp(dtype=torch.float64), batch_for(mlp, dtype=torch.float64)
    optimizer = LearnedOptimizer(model, meta)
    train(model, optimizer, [pair] * 3)
    before = weights(model)
    train(model, optimizer, [pair], lambda out, y: factor * F.mse_loss(out, y))
    step = [w - b for w, b in zip(weights(model), before, strict=True)]
    return step, float(optimizer.learned_state["trust"][0][0])


@pytest.mark.parametrize(("factor", "expected"), [(1.0, 1.0), (1.2, 1.0), (10.0, 0.5)])
def test_a_step_of_a_network_is_multiplied_by_trust(monkeypatch, factor, expected):
    step, trust = spiking(factor)
    assert trust == expected
    monkeypatch.setattr(
        module_stepper, "trusted", lambda before, gradient, same, replicas: untried()
    )
    whole, _ = spiking(factor)
    torch.testing.assert_close(step, [expected * part for part in whole], rtol=1e-6, atol=1e-12)
    assert all(part.any() for part in step)
