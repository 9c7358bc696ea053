"""Families with a known symmetry, hand-made and learned rotations on them, and their study."""

import math

import numpy as np
import pytest
import torch

from metaopt.errors import UserError
from metaopt.tasks.seeds import first_seeds
from studies.convergence import family_checks, symmetric_families
from studies.convergence.family_methods import (
    METHODS,
    Grid,
    Method,
    run,
    score,
    steps_to_target,
    tuned,
)
from studies.convergence.learned_rotation import (
    VARIANTS,
    Training,
    initial,
    seen,
    trained,
)
from studies.functions.families_2d import FAMILIES_2D, Ellipses, Family2D, Rosenbrocks

NAMES = sorted(FAMILIES_2D)


@pytest.fixture(scope="module")
def outcome():
    return symmetric_families.study(quick=True)


def drawn(name, members=6, starts=2):
    return FAMILIES_2D[name].drawn(range(members), starts)


def named(checks, part):
    found = [check for check in checks if part in check.statement]
    assert found
    return found


@pytest.mark.parametrize("name", NAMES)
def test_gradients_and_hessians_are_those_of_autograd(name):
    members, w = drawn(name)
    w.requires_grad_()
    (slope,) = torch.autograd.grad(members.loss(w).sum(), w, create_graph=True)
    torch.testing.assert_close(members.gradient(w), slope)
    rows = [torch.autograd.grad(slope[:, i].sum(), w, retain_graph=True)[0] for i in (0, 1)]
    torch.testing.assert_close(members.hessian(w), torch.stack(rows, 1))
    by_h = [torch.autograd.grad(members.h(w)[:, i].sum(), w)[0] for i in (0, 1)]
    torch.testing.assert_close(members.jacobian(w), torch.stack(by_h, 1))


def test_a_member_is_the_function_that_its_name_says():
    matrix = torch.tensor([[[2.0, 0.5], [0.5, 1.0]]], dtype=torch.float64)
    center, w = (
        torch.tensor([[1.0, -1.0]], dtype=torch.float64),
        torch.tensor([[0.3, 0.4]], dtype=torch.float64),
    )
    away = (w - center)[0]
    expected = 0.5 * away @ matrix[0] @ away
    torch.testing.assert_close(Ellipses(matrix, center).loss(w)[0], expected)
    b = torch.tensor([7.0], dtype=torch.float64)
    x, y = 0.3, 0.4
    assert Rosenbrocks(b).loss(w).item() == pytest.approx((1 - x) ** 2 + 7 * (y - x * x) ** 2)


@pytest.mark.parametrize("name", NAMES)
def test_rotations_are_a_group_that_keeps_the_loss(name):
    members, w = drawn(name)
    one, two = (torch.full(w.shape[:1], a).double() for a in (0.7, -2.1))
    torch.testing.assert_close(members.inverse(members.h(w)), w)
    twice = members.rotate(members.rotate(w, one), two)
    torch.testing.assert_close(twice, members.rotate(w, one + two))
    torch.testing.assert_close(members.loss(twice), members.loss(w))


@pytest.mark.parametrize("name", NAMES)
def test_the_steepest_point_is_the_best_of_a_fine_grid(name):
    members, w = drawn(name, members=12)
    turns = 2 * math.pi * torch.arange(5000).double() / 5000
    around = members.rotate(w.expand(5000, *w.shape), turns[:, None].expand(-1, len(w)))
    best = members.steepness(around).amax(0)
    found = members.steepness(members.steepest(w))
    assert (found >= best * (1 - 1e-12)).all()
    assert (found <= best * (1 + 1e-4)).all()
    again = members.steepest_angle(members.steepest(w))
    assert again.abs().max() < 1e-6  # of equal maxima the nearest


def test_a_circle_or_the_minimum_has_no_angle_to_go_to():
    members = Ellipses(torch.eye(2).double()[None], torch.zeros(1, 2).double())
    w = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(members.steepness(members.steepest(w)), members.steepness(w))
    assert members.steepest_angle(torch.zeros(1, 2).double()).item() == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_gives_the_same_member_whatever_is_beside_it(name):
    members, starts = FAMILIES_2D[name].drawn([3, 4], 2)
    alone, own = FAMILIES_2D[name].drawn([4], 2)
    torch.testing.assert_close(own, starts[2:], rtol=0, atol=0)
    assert torch.equal(members.take(torch.tensor([2, 3])).loss(own), alone.loss(own))
    assert not torch.equal(own[0], own[1])


def test_ellipses_have_the_axes_that_they_promise():
    members, starts = Ellipses.drawn(range(300))
    low, high = members.eigenvalues.unbind(-1)
    assert (high >= 0.5 - 1e-12).all()
    assert (high <= 2 + 1e-12).all()
    assert (high / low >= 2 - 1e-9).all()
    assert (high / low <= 50 + 1e-9).all()
    away = (starts - members.center).norm(dim=-1)
    assert ((away >= 1) & (away <= 3)).all()


def test_functions_without_a_minimum_are_refused_in_one_line():
    with pytest.raises(UserError, match=r"^expected .*, got .*: .*$"):
        Ellipses(torch.diag(torch.tensor([1.0, -1.0])).double()[None], torch.zeros(1, 2).double())
    with pytest.raises(UserError, match=r"^expected .*, got .*: .*$"):
        Rosenbrocks(torch.tensor([1.0, 0.0], dtype=torch.float64))
    with pytest.raises(UserError, match=r"^expected .*, got .*: .*$"):
        Rosenbrocks.drawn([])


def test_many_runs_at_once_are_each_its_own():
    """Against a plain loop, with momentum and a teleport at every third step."""
    members, starts = drawn("rosenbrock")
    methods = [
        Method("one", every=3, momentum=0.5, rate=1e-4),
        Method("two", every=math.inf, momentum=0.0, rate=3e-4),
    ]
    together = run(members, starts, methods, 25)
    for i, method in enumerate(methods):
        w, velocity = starts, torch.zeros_like(starts)
        for t in range(25):
            if t % method.every == 0:
                w = members.steepest(w)
            velocity = method.momentum * velocity + members.gradient(w)
            w = w - method.rate * velocity
            expected = members.loss(w) / members.loss(starts)
            torch.testing.assert_close(together[t + 1, i], expected, rtol=1e-9, atol=1e-12)


def test_a_run_that_ends_early_repeats_its_last_loss():
    members, starts = drawn("ellipse")
    relative = run(members, starts, [Method("Newton", rate=None, newton=True)], 30)[:, 0]
    assert (relative[1:] < 1e-25).all()
    wild = run(members, starts, [Method("GD", rate=1e3)], 40)[:, 0]
    assert torch.equal(wild[20], wild[40])
    assert np.isinf(steps_to_target(wild)).all()


def test_steps_to_the_target_are_counted_from_the_start():
    series = torch.tensor(
        [[1.0, 1.0, 1.0], [1e-6, 0.5, 2.0], [1e-9, 1e-7, 3.0]], dtype=torch.float64
    )
    assert steps_to_target(series).tolist() == [1, 2, math.inf]
    assert score(series) == pytest.approx((1 + 2 + 2) / 3, abs=0.01)


def test_tuning_takes_the_best_rate_of_the_grid():
    members = Ellipses(2 * torch.eye(2).double()[None], torch.zeros(1, 2).double())
    start = torch.ones(1, 2).double()
    grid = Grid((0.01, 0.5, 0.9), (0.9,), (1,))
    best, steps = tuned(Method("GD"), members, start, 50, grid)
    assert best.rate == 0.5
    assert steps == pytest.approx(1, abs=0.01)
    assert len(METHODS[6].choices(Grid((0.1, 0.2), (0.5, 0.9), (1, 5)))) == 8


@pytest.mark.parametrize("name", NAMES)
def test_an_untrained_rule_moves_nothing_and_steps_at_its_rate(name):
    members, starts = drawn(name)
    rules = initial([0, 1], 1e-3)
    w = starts.expand(2 * len(VARIANTS), *starts.shape)
    torch.testing.assert_close(rules.teleport(members, w)[0], w)
    plain = starts - 1e-3 * members.gradient(starts)
    torch.testing.assert_close(rules.step(members, w)[0], plain)


def test_what_a_rule_sees_has_the_angle_of_h_and_the_determinant():
    members, starts = drawn("rosenbrock")
    features = seen(members, starts)
    z = members.h(starts)
    torch.testing.assert_close(torch.atan2(features[:, 1], features[:, 0]), z[:, 1].atan2(z[:, 0]))
    torch.testing.assert_close(2 * features[:, 6], members.b.log())
    assert features[:, 2].abs().max() <= 1


def test_training_makes_rules_better_and_the_same_seeds_make_the_same_rules():
    validation = Ellipses.drawn(first_seeds("validation", 8))
    training = Training(meta_steps=40, members=16, pool=64, every=20, horizon=40)
    rules = initial([0], 0.05)
    before = score(rules.run(*validation, training.horizon))
    first, after = trained(Ellipses, validation, rules, training)
    assert (after < before).all()
    assert after == pytest.approx(score(first.run(*validation, training.horizon)))
    again, _ = trained(Ellipses, validation, rules, training)
    for one, other in zip(first.weights, again.weights, strict=True):
        assert torch.equal(one, other)


def test_the_study_of_families_comes_out_as_expected(outcome):
    assert outcome.as_expected, outcome.verdict
    assert outcome.study == "symmetric-families"
    assert outcome.picture.startswith(b"\x89PNG")


def test_every_method_is_reported_on_both_families(outcome):
    for name in NAMES:
        for method in (*METHODS, *VARIANTS):
            assert outcome.facts[name][method.name]["median"] > 0
        assert outcome.facts[name]["teleport always, rate 1/λ0"]["share"] == 1


def test_teleporting_is_slower_at_large_stable_rates(outcome):
    (check,) = named(outcome.checks, "at every stable rate")
    assert not check.holds
    (corrected,) = named(outcome.checks, "no more steps than none, rates up to")
    assert corrected.holds


@pytest.mark.parametrize("name", NAMES)
def test_a_point_beside_the_steepest_is_seen(name, monkeypatch):
    members, starts = drawn(name)
    right = Family2D.steepest_angle
    monkeypatch.setattr(Family2D, "steepest_angle", lambda self, w: right(self, w) + 0.05)
    checks = family_checks.checks_of(name, members, starts, initial([0], 1e-3), {})
    for part in ("steeper than the steepest point", "Newton's direction"):
        assert not any(check.as_expected for check in named(checks, part))


def test_half_of_beta_is_seen(monkeypatch):
    members, starts = drawn("ellipse")
    monkeypatch.setitem(members.__dict__, "eigenvalues", members.eigenvalues / 2)
    checks = family_checks.checks_of("ellipse", members, starts, initial([0], 1e-3), {})
    assert not any(check.as_expected for check in named(checks, "is 2 β L"))


@pytest.mark.parametrize("name", NAMES)
def test_a_move_that_is_no_rotation_is_seen(name, monkeypatch):
    members, starts = drawn(name)
    right = Family2D.rotate
    monkeypatch.setattr(Family2D, "rotate", lambda self, w, a: right(self, w, a) + 1e-6)
    checks = family_checks.checks_of(name, members, starts, initial([0], 1e-3), {})
    assert not any(check.as_expected for check in named(checks, "keeps the loss"))
