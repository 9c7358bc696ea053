"""Theorems 3.1 and 3.2 and Proposition A.2: orbits, right-hand sides, and the three studies."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.func import hessian, jacrev, vmap

from metaopt import UserError
from studies.convergence import convex_order, error_bound, sgd_basin
from studies.convergence.convex_order_failures import (
    attained,
    climb,
    open_steepness,
    pairs_check,
    rise_check,
)
from studies.convergence.sgd_counterexamples import (
    network_check,
    network_steepness,
    quartic_beta,
    quartic_losses,
)
from studies.convergence.stochastic import sgd
from studies.convergence.stochastic_problems import (
    axis_samples,
    bowl,
    many_directions,
    ripple,
    ripple_constants,
    ripple_slope,
    rippled_ellipse,
    shared_hessian,
    sheared_bowl,
    sheared_smoothness,
    stationary,
)
from studies.functions.convexity import (
    STRICTLY_CONVEX,
    exponentials,
    exponentials_level,
    narrowing_cone,
    narrowing_cone_level,
)
from studies.functions.quadratic import Quadratic, booth, random_quadratic
from studies.geometry.bounds import BasinBounds
from studies.geometry.level_curves import LevelCurves
from studies.geometry.rotations import EllipticOrbits, RadialFamily, quadratic_orbits
from studies.geometry.steepest import (
    batched_gradient,
    largest_on_circles,
    largest_on_line,
)

STUDIES = {"sgd-basin": sgd_basin, "error-bound": error_bound, "convex-order": convex_order}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def rotation(n, seed=3):
    return torch.linalg.qr(draw(n, n, seed=seed))[0]


def verdicts(outcome):
    return {check.statement: check.holds for check in outcome.checks}


@pytest.fixture(scope="module")
def outcomes():
    return {name: module.study(quick=True) for name, module in STUDIES.items()}


# Orbits


def test_a_rotation_in_the_hessians_metric_keeps_a_quadratics_level():
    quadratic = random_quadratic(5, 30.0, seeded())
    quadratic = dataclasses.replace(quadratic, minimizer=draw(5))
    w = draw(5, seed=1)
    moved = quadratic_orbits(quadratic).move(w, rotation(5))
    assert (moved - w).norm() > 0.1
    torch.testing.assert_close(quadratic(moved), quadratic(w))


def test_the_steepest_point_of_an_orbit_has_the_closed_form_and_none_is_steeper():
    quadratic = random_quadratic(4, 20.0, seeded())
    orbits, w = quadratic_orbits(quadratic), draw(4, seed=1)
    level = quadratic(w)
    steepest = orbits.steepest(w)
    known = quadratic.steepest_point(float(level))
    assert min((steepest - known).norm(), (steepest + known).norm()) < 1e-10
    torch.testing.assert_close(orbits.largest(w), quadratic.largest_squared_gradient(level))
    squares = [
        (quadratic.matrix @ orbits.move(w, rotation(4, seed))).square().sum() for seed in range(200)
    ]
    flattest = (quadratic.matrix @ orbits.flattest(w)).square().sum()
    assert flattest <= min(squares) < max(squares) <= orbits.largest(w)
    torch.testing.assert_close(flattest, 2 * quadratic.mu * level)


def test_the_steepest_point_is_the_nearer_of_the_two():
    orbits = quadratic_orbits(Quadratic(torch.diag(torch.tensor([1.0, 9.0]).double()), draw(2)))
    w = draw(50, 2, seed=2)
    other = 2 * orbits.center - orbits.steepest(w)
    assert ((w - orbits.steepest(w)).norm(dim=-1) <= (w - other).norm(dim=-1)).all()


def test_the_farthest_distance_is_that_of_the_flattest_point():
    orbits = quadratic_orbits(booth())
    w = draw(20, 2)
    distance = (orbits.flattest(w) - orbits.center).norm(dim=-1)
    torch.testing.assert_close(orbits.farthest(w), distance)
    turned = orbits.move(w, rotation(2))
    assert ((turned - orbits.center).norm(dim=-1) <= distance * (1 + 1e-12)).all()


def test_a_profile_that_is_not_a_parabola_has_the_same_steepest_points():
    matrix = draw(2, 2, seed=4)
    orbits = EllipticOrbits(matrix, draw(2), ripple_slope)
    w = draw(30, 2, seed=5)
    slope = batched_gradient(lambda x: ripple(orbits.radius(x)), orbits.steepest(w))
    torch.testing.assert_close(slope.square().sum(-1), orbits.largest(w))


def test_orbits_need_an_invertible_matrix():
    with pytest.raises(UserError, match="expected an invertible A"):
        EllipticOrbits(torch.ones(2, 2).double(), torch.zeros(2).double(), ripple_slope)


def test_a_family_moves_along_its_level_sets_and_finds_what_a_fine_grid_finds():
    family, w = sheared_bowl(0.8), 3 * draw(12, 2)
    torch.testing.assert_close(family(family.move(w, rotation(2))), family(w))
    steepest = family.steepest(w)
    torch.testing.assert_close(family(steepest), family(w))
    angles = torch.linspace(0, 2 * math.pi, 4001).double().expand(12, -1)
    radii = family.forward(w).norm(dim=-1, keepdim=True).expand_as(angles)
    brute = family.steepness(angles, radii).max(-1).values
    found = family.gradient(steepest).square().sum(-1)
    assert (found >= brute * (1 - 1e-12)).all()
    torch.testing.assert_close(found, brute, rtol=1e-4, atol=0)


def test_a_family_pulls_back_by_the_transpose_of_its_jacobian():
    family, w, v = sheared_bowl(0.8), draw(7, 2), draw(7, 2, seed=1)
    jacobian = vmap(jacrev(family.forward))(w)
    torch.testing.assert_close(family.pull_back(w, v), torch.einsum("mij,mi->mj", jacobian, v))


def test_a_family_is_searched_in_the_plane_only_and_where_gradients_are_finite():
    family = sheared_bowl(0.8)
    with pytest.raises(UserError, match="expected points of shape"):
        family.steepest(draw(3, 3))
    broken = RadialFamily(lambda s: s.log() * 0 + 1 / (s - s), lambda w: w, lambda z: z)
    with pytest.raises(UserError, match="expected a finite"):
        broken.steepest(draw(3, 2))


def test_the_search_on_circles_finds_the_top_of_each():
    labels = torch.tensor([0.3, 1.0, 5.5]).double()
    found = largest_on_circles(lambda a, k: k + (a - k).cos() + 0.2 * (9 * (a - k)).cos(), labels)
    torch.testing.assert_close(found.value, labels + 1.2)
    torch.testing.assert_close(found.where, labels, rtol=0, atol=1e-6)
    flat = largest_on_circles(lambda a, k: k + 0 * a, labels)
    torch.testing.assert_close(flat.value, labels)


def test_the_search_on_a_line_finds_a_maximum_or_says_that_there_is_none():
    where, value = largest_on_line(lambda t: 3 - (t - 0.123).square())
    assert abs(where - 0.123) < 1e-6
    assert value == pytest.approx(3, abs=1e-12)
    assert largest_on_line(lambda t: 0 * t + 2)[1] == 2  # attained everywhere
    for rising in (torch.exp, torch.tanh, lambda t: network_steepness(2.0, 1.0, t)):
        with pytest.raises(UserError, match="attains a maximum"):
            largest_on_line(rising)


def test_level_curves_are_on_their_levels_and_know_the_quadratics_maximum():
    quadratic = booth()

    def batched(w):
        shifted = w - quadratic.minimizer
        return 0.5 * ((shifted @ quadratic.matrix) * shifted).sum(-1)

    curves = LevelCurves(batched, quadratic.minimizer)
    levels = torch.tensor([1e-3, 1.0, 50.0]).double()
    points = curves.points(torch.tensor([0.1, 2.0, 4.0]).double(), levels)
    torch.testing.assert_close(batched(points), levels, rtol=1e-12, atol=0)
    found = curves.largest(levels)
    torch.testing.assert_close(found.value, quadratic.largest_squared_gradient(levels))
    steepest = curves.steepest(points)
    torch.testing.assert_close(batched(steepest), levels)
    square = batched_gradient(batched, steepest).square().sum(-1)
    torch.testing.assert_close(square, found.value)


def test_level_curves_refuse_levels_that_are_not_closed_curves():
    curves = LevelCurves(STRICTLY_CONVEX["lopsided"], torch.zeros(2).double())
    with pytest.raises(UserError, match="above the minimum"):
        curves.points(torch.zeros(1).double(), torch.zeros(1).double())
    flat = LevelCurves(lambda w: w[..., 0].square(), torch.zeros(2).double())
    with pytest.raises(UserError, match="unbounded"):
        flat.points(torch.full((1,), math.pi / 2, dtype=torch.float64), torch.ones(1).double())


# Right-hand sides


def test_the_right_hand_sides_are_those_of_the_theorems():
    bounds = BasinBounds(beta=3.0, sigma2=0.5, gap=2.0, steps=17, mu=0.5)
    eq_7 = 2 * 3 / 4 * 2 + 3 * 0.5 / 4
    assert bounds.learning_rate == pytest.approx(1 / 12)
    assert bounds.gradient == pytest.approx(eq_7)
    assert bounds.printed_distance == pytest.approx(eq_7 / 0.5)
    assert bounds.squared_distance == pytest.approx(eq_7 / 0.25)
    assert bounds.distance == pytest.approx(math.sqrt(eq_7) / 0.5)
    assert bounds.excess == pytest.approx(eq_7)
    assert bounds.mean_gradient == pytest.approx((bounds.gap_factor * 2 + 0.5) * 3 / 4)
    assert bounds.weights[2] == pytest.approx((1 + 1 / 16) ** -3)
    assert len(bounds.weights) == 17


def test_the_gap_factor_goes_from_four_thirds_to_e_over_e_minus_1():
    factors = [BasinBounds(1.0, 0.0, 1.0, steps).gap_factor for steps in (2, 3, 10, 10**6)]
    assert factors[0] == pytest.approx(4 / 3)
    assert factors == sorted(factors)
    assert factors[-1] == pytest.approx(math.e / (math.e - 1), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta": 0.0}, "expected beta > 0"),
        ({"beta": -1.0}, "expected beta > 0"),
        ({"beta": math.nan}, "expected beta > 0"),
        ({"sigma2": -0.1}, "expected sigma"),
        ({"gap": -0.1}, "expected sigma"),
        ({"steps": 1}, "expected T of 2"),
        ({"steps": 2.5}, "expected T of 2"),
        ({"mu": 0.0}, "expected 0 < mu"),
        ({"mu": 1.1}, "expected 0 < mu"),
    ],
)
def test_bounds_outside_the_theorems_assumptions_are_refused(change, message):
    good = {"beta": 1.0, "sigma2": 0.0, "gap": 1.0, "steps": 5}
    assert BasinBounds(**good).gradient > 0
    with pytest.raises(UserError, match=message):
        BasinBounds(**{**good, **change})


def test_error_bounds_need_mu():
    with pytest.raises(UserError, match="got none"):
        _ = BasinBounds(1.0, 0.0, 1.0, 5).distance


# Problems and their constants


@pytest.mark.parametrize("make", [axis_samples, bowl, rippled_ellipse])
def test_the_samples_gradients_average_to_the_gradient_of_the_loss(make):
    problem, w = make(), 2 * draw(20, 2)
    torch.testing.assert_close(problem.gradient(w), batched_gradient(problem.loss, w))
    assert problem.samples(w).std(-2).max() > 0.1


def test_sigma2_is_what_the_samples_minima_give():
    noise, family, problem = 0.5, sheared_bowl(0.8), bowl()
    xi = noise * torch.tensor([[1, 0], [-1, 0], [0, 1], [0, -1]]).double()

    def least(value):
        start = minimize(lambda x: float(value(torch.tensor(x))), np.zeros(2), tol=1e-12)
        return start.fun

    found = [least(lambda w, x=x: family(w) + x @ family.forward(w)) for x in xi]
    assert problem.sigma2 == pytest.approx(-np.mean(found), abs=1e-8)
    rippled = rippled_ellipse()
    found = [least(lambda w, x=x: rippled.loss(w) + 0.6 * x @ w) for x in xi]  # 0.3 = 0.6 * 0.5
    assert rippled.sigma2 == pytest.approx(-np.mean(found), abs=1e-8)


def test_the_sheared_bowls_beta_is_reached_and_not_passed_by_hessians():
    bend, noise = 0.8, 0.5
    beta, family, w = sheared_smoothness(bend, noise), sheared_bowl(bend), 2 * draw(3000, 2)
    norms = [
        torch.linalg.eigvalsh(
            vmap(hessian(lambda x, s=s: family(x) + s * noise * family.forward(x)[1]))(w)
        )
        for s in (1, -1)
    ]
    values = torch.cat(norms)
    assert values.min() < -0.5  # not convex
    assert 0.97 * beta < values.abs().max() <= beta
    stretch = ((bend + math.sqrt(bend**2 + 4)) / 2) ** 2  # ||J||^2
    assert beta <= math.hypot(stretch, bend) + bend * noise


def test_the_rippled_ellipses_constants_are_reached_and_not_passed():
    problem = rippled_ellipse()
    w = torch.cat([2 * draw(3000, 2), 1e-3 * draw(100, 2)])
    values = torch.linalg.eigvalsh(vmap(hessian(problem.loss))(w))
    assert values.min() < -1
    assert 0.99 * problem.beta < values.abs().max() <= problem.beta
    r = torch.linspace(1e-3, 20, 100001).double()
    pl, error = ripple_constants()
    assert pl == pytest.approx(float((ripple_slope(r).square() / (2 * ripple(r))).min()), rel=1e-6)
    assert error == pytest.approx(float((ripple_slope(r) / r).min()), rel=1e-6)


def test_the_closed_form_of_the_expectation_is_that_of_one_dimension_by_hand():
    """w_1 = (1 - eta beta) w_0 +- eta beta c: E L - L* = beta/2 ((1 - x)^2 w_0^2 + x^2 c^2)."""
    one = torch.ones(1, 1).double()
    problem = shared_hessian("one", 2 * one, torch.tensor([[0.5], [-0.5]]).double(), 3 * one[0])
    assert problem.expected(0.1, 1, True).excess == pytest.approx([9, 0.8**2 * 9 + 0.2**2 * 0.25])
    assert problem.sigma2 == pytest.approx(0.25)


def test_the_stationary_problem_is_stationary():
    expected = stationary(17, (1.0, 3.0)).expected(1 / 12, 17, True).excess
    assert expected == pytest.approx(np.full(18, expected[0]))


# Theorem 3.1


def test_every_study_comes_out_as_expected(outcomes):
    for outcome in outcomes.values():
        assert outcome.as_expected, outcome.verdict
        assert outcome.picture.startswith(b"\x89PNG")


def test_studies_can_be_written(outcomes, tmp_path):
    for name, outcome in outcomes.items():
        assert outcome.study == name
        outcome.write(tmp_path)
        assert (tmp_path / f"{name}.json").stat().st_size > 1000


def test_eq_7_and_its_sharper_form_hold_and_plain_sgd_has_no_such_bound(outcomes):
    found = verdicts(outcomes["sgd-basin"])
    assert all(holds for text, holds in found.items() if text.startswith("eq. 34 on"))
    assert sum(text.startswith("eq. 7 on") for text in found) == 4
    assert not found["eq. 7 without teleports, of max_g ||grad L(g.w_t)||^2"]


def test_half_of_beta_and_half_of_sigma2_break_eq_7():
    def checks(steps, **change):
        problem = dataclasses.replace(many_directions(seeded(1)), **change)
        return sgd_basin.basin_checks([sgd_basin.measure(problem, steps, 20)])

    right = many_directions(seeded(1))
    assert all(check.holds for check in checks(2))
    assert not checks(2, beta=right.beta / 2)[0].holds

    balanced = stationary(65, (1.0, 3.0))
    rows = [sgd_basin.measure(balanced, 65, 5)]
    assert all(check.holds for check in sgd_basin.basin_checks(rows)[:2])
    wrong = dataclasses.replace(balanced, sigma2=balanced.sigma2 / 2)
    rows = [sgd_basin.measure(wrong, 65, 5)]
    assert not any(check.holds for check in sgd_basin.basin_checks(rows)[:2])


def test_half_of_beta_breaks_lemma_a_1_and_the_bound_on_an_orbit():
    problem = many_directions(seeded(1))
    wrong = dataclasses.replace(problem, beta=problem.beta / 2)
    assert all(check.holds for check in sgd_basin.lemma_checks([problem]))
    assert not any(check.holds for check in sgd_basin.lemma_checks([wrong]))


def test_a_wrong_constant_changes_the_verdict_of_the_sgd_study(monkeypatch):
    problems = sgd_basin.problems
    monkeypatch.setattr(sgd_basin, "picture", lambda *_: b"")
    monkeypatch.setattr(sgd_basin, "QUICK", sgd_basin.Scale((2, 5), 50, (), 0))
    assert sgd_basin.study(quick=True).as_expected
    monkeypatch.setattr(
        sgd_basin,
        "problems",
        lambda *args: [dataclasses.replace(p, beta=p.beta / 2) for p in problems(*args)],
    )
    assert not sgd_basin.study(quick=True).as_expected


def test_a_wrong_learning_rate_is_noticed_in_the_means_over_seeds(monkeypatch):
    rows = [sgd_basin.measure(stationary(17, (1.0, 3.0)), 17, 200)]
    assert sgd_basin.chance_check(rows).holds
    wrong = dataclasses.replace(rows[0].problem, beta=2.0)
    assert not sgd_basin.chance_check([rows[0]._replace(bounds=wrong.bounds(17))]).holds


def test_teleported_sgd_on_two_seeds_is_eq_5_by_hand():
    problem = axis_samples()
    run = sgd(problem, 5, 2, seeded(7))
    generator, w = seeded(7), problem.start.expand(2, -1)
    eta = 1 / (problem.beta * 2)
    for t in range(5):
        assert run.excess.mean[t] == pytest.approx(float(problem.loss(w).mean()) - problem.lowest)
        v = problem.orbits.steepest(w)
        drawn = torch.randint(4, (2,), generator=generator)
        w = v - eta * problem.samples(v)[[0, 1], drawn]
    assert run.excess.mean[5] == pytest.approx(float(problem.loss(w).mean()) - problem.lowest)


def test_gl_on_a_linear_network_has_no_steepest_point_and_passes_every_smoothness_bound():
    check = network_check()
    assert not check.holds
    assert check.as_expected
    u, v = 2.0, 1.0
    for beta in (1.0, 1e3, 1e6):  # 2 beta (L - inf L)
        s = torch.tensor(10 * math.sqrt(beta)).double().log()
        assert network_steepness(u, v, s) > 2 * beta * 0.5 * (u * v - 1) ** 2
    assert network_check(1.0, 1.0).holds  # at the minimum the gradient is 0 all along the orbit


def test_a_smaller_loss_after_t_steps_fails_as_printed_and_holds_for_a_quadratic(outcomes):
    beta = quartic_beta()
    assert beta == pytest.approx(1.4306, abs=1e-4)
    with_, without = (quartic_losses(5, on, beta)[-1] for on in (True, False))
    assert with_ == pytest.approx(0.00729, abs=1e-5)
    assert without == pytest.approx(0.00678, abs=1e-5)
    found = verdicts(outcomes["sgd-basin"])
    assert not found["L after T steps is smaller with teleports, as printed"]
    assert found["E L(w_T) is no larger with teleports, for a quadratic with one Hessian"]


def test_the_proofs_condition_on_t_fails_as_printed_and_holds_with_log_2(outcomes):
    found = verdicts(outcomes["sgd-basin"])
    assert not found["the proof's 2 (1 + x) / x <= T, as printed"]
    assert found["log 2 (1 + x) / x <= T"]
    assert found["(1 + x)^-T = (1 - 1/T)^T <= 1/e"]


# Theorem 3.2


def test_eq_9_fails_as_printed_and_the_corrected_forms_hold():
    printed, corrected, printed_late, corrected_late = error_bound.printed_checks()
    assert not printed.holds
    assert corrected.holds
    assert printed.margin == pytest.approx(5e-5 / 6.25e-4)
    assert not printed_late.holds  # with noise, too
    assert corrected_late.holds


def test_distances_are_to_the_nearest_minimiser():
    fixed, nearest = error_bound.fixed_minimizer_checks()
    assert not fixed.holds
    assert nearest.holds


def test_the_error_bound_does_not_give_pl_back_with_the_same_constant():
    bound, same, squared = error_bound.equivalence_checks()
    assert bound.holds
    assert bound.margin == pytest.approx(1, abs=1e-4)
    assert not same.holds
    assert squared.holds


def test_half_of_sigma2_breaks_each_corrected_error_bound():
    problem = stationary(65)
    checks = error_bound.corrected_checks([error_bound.measure(problem, 65, 5)])
    assert all(check.holds for check in checks)
    wrong = dataclasses.replace(problem, sigma2=problem.sigma2 / 2)
    checks = error_bound.corrected_checks([error_bound.measure(wrong, 65, 5)])
    assert not any(check.holds for check in checks)


def test_too_large_a_mu_changes_the_verdict_of_the_error_bound_study(monkeypatch):
    problems = error_bound.problems
    monkeypatch.setattr(error_bound, "picture", lambda *_: b"")
    monkeypatch.setattr(error_bound, "STEPS", (2,))
    assert error_bound.study(quick=False).as_expected
    monkeypatch.setattr(
        error_bound,
        "problems",
        lambda steps: [dataclasses.replace(p, mu=1.1 * p.mu) for p in problems(steps)[1:]],
    )
    assert not error_bound.study(quick=False).as_expected


# Proposition A.2


def test_the_functions_are_strictly_convex_and_the_ones_with_a_minimum_have_it_at_0():
    w = 2 * draw(500, 2)
    for function in [*STRICTLY_CONVEX.values(), exponentials, narrowing_cone]:
        assert torch.linalg.eigvalsh(vmap(hessian(function))(w)).min() > 0
    zero = torch.zeros(1, 2).double()
    for function in STRICTLY_CONVEX.values():
        assert function(zero).abs() < 1e-15
        assert batched_gradient(function, zero).norm() < 1e-15


def test_the_open_level_sets_are_level_sets():
    t = torch.linspace(-5, 5, 11).double()
    for level in (0.4, 2.0):
        same = torch.full_like(t, level)
        torch.testing.assert_close(exponentials(exponentials_level(t, level)), same)
        torch.testing.assert_close(narrowing_cone(narrowing_cone_level(t, level)), same)


def test_no_maximum_is_attained_by_exponentials_or_low_on_the_narrowing_cone():
    assert not attained("exponentials", 0.5)
    assert not attained("narrowing-cone", 0.5)
    assert attained("narrowing-cone", 2.0)
    t = torch.linspace(-10, 10, 100).double()
    assert (open_steepness("exponentials", 0.5, t) < 0.25).all()
    assert (open_steepness("narrowing-cone", 0.5, t) < 1).all()


def test_the_order_of_prop_a_2_holds_for_strictly_convex_functions_only(outcomes):
    found = verdicts(outcomes["convex-order"])
    for name in STRICTLY_CONVEX:
        assert found[f"Prop. A.2 on {name}"]
    failing = [text for text in found if "as if it were strictly convex" in text]
    assert len(failing) == 4
    assert not any(found[text] for text in failing)


def test_eq_40_lacks_a_2_and_its_strict_inequality_fails(outcomes):
    found = verdicts(outcomes["convex-order"])
    assert not found["eq. 40: g . grad ||g||^2 = g^T H g, as printed"]
    assert found["g . grad ||g||^2 = 2 g^T H g"]
    strict = "the proof: g^T H g > 0 at the steepest point of strictly convex L, as printed"
    assert not found[strict]
    assert found["F rises with the level: x^2/2 + cos x - 1, around 2 pi"]


def test_a_wrong_sign_or_factor_changes_the_verdict_of_the_convex_study(monkeypatch):
    levels = torch.logspace(-2, 1, 6).double()
    function = STRICTLY_CONVEX["quartic-valley"]
    _, checks = convex_order.convex_checks("quartic-valley", function, levels)
    assert all(check.holds for check in checks)
    right = convex_order.at_steepest
    monkeypatch.setattr(
        convex_order,
        "at_steepest",
        lambda *args: (right(*args)[0], right(*args)[1] / 2, right(*args)[2]),
    )
    _, checks = convex_order.convex_checks("quartic-valley", function, levels)
    assert [check.holds for check in checks] == [True, True, False]

    seen = climb(function, levels)
    assert rise_check("", seen.largest).holds
    assert not rise_check("", seen.largest[::-1]).holds
    swapped = seen._replace(levels=seen.levels[::-1].copy())
    assert pairs_check("", seen, function, seen.points).holds
    assert not pairs_check("", swapped, function, seen.points).holds


def test_half_of_beta_breaks_the_closed_forms_of_the_convex_study(monkeypatch):
    levels = torch.logspace(-1, 1, 4).double()
    assert all(check.holds for check in convex_order.quadratic_checks(levels))
    right = Quadratic.beta.fget
    monkeypatch.setattr(Quadratic, "beta", property(lambda self: right(self) / 2))
    found = [check.holds for check in convex_order.quadratic_checks(levels)]
    assert found == [False, True, False, False]
