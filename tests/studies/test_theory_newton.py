"""Proposition 3.3 and Lemma C.1: steepest points, damped Newton steps, bounds, and the study."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from theory_cases import check, generator, point

from metaopt import UserError
from studies.convergence import newton, newton_runs
from studies.functions.level_set_examples import (
    falling_curvature,
    flat_axis,
    half_square,
    long_way,
    quartic_well,
    tilted_quartic,
)
from studies.functions.quadratic import booth, ellipse, random_quadratic
from studies.functions.skewed import (
    SkewedQuadratic,
    bend,
    bend_constants,
    bend_second,
    bend_third,
    random_skewed,
)
from studies.geometry.derivatives import (
    derivatives,
    gradients,
    slope,
    slopes,
    value_and_slope,
)
from studies.geometry.fields import gradient, hessian_of
from studies.geometry.level_sets import (
    damped_newton_step,
    on_level_set,
    order_of_convergence,
    solve_critical,
    steepest_point,
)
from studies.geometry.newton_bounds import (
    Constants,
    bound_before_teleport,
    newton_bound,
    printed_newton_bound,
    sharper_newton_bound,
)

ZERO = torch.zeros(2, dtype=torch.float64)


@pytest.fixture(scope="module")
def outcome():
    return newton.study(True)


# the functions


def test_the_bends_derivatives_are_those_by_differentiation():
    for z in (-3.0, -0.4, 0.0, 1.7):
        at = derivatives(lambda w: bend(w[0]), point(z))
        assert float(at.hessian) == pytest.approx(bend_second(z), rel=1e-12)
        step = 1e-5
        third = (bend_second(z + step) - bend_second(z - step)) / (2 * step)
        assert third == pytest.approx(bend_third(z), rel=1e-8)


def test_the_bends_constants_are_its_extremes():
    low, high, third = bend_constants()
    grid = np.linspace(-30, 30, 6001)
    second = [bend_second(z) for z in grid]
    assert low <= min(second) <= low + 1e-5
    assert high - 1e-5 <= max(second) <= high
    assert low + high == pytest.approx(2, rel=1e-9)
    assert third == pytest.approx(1.5, rel=1e-9)
    assert max(abs(bend_third(z)) for z in grid) <= third * (1 + 1e-9)


def test_a_skewed_quadratics_hessian_keeps_within_its_constants():
    function = random_skewed(4, 4.0, generator())
    points = 3 * torch.randn(12, 4, generator=generator(1), dtype=torch.float64)
    hessians = torch.stack([derivatives(function, w).hessian for w in points])
    values = torch.linalg.eigvalsh(hessians)
    assert function.mu <= values.min()
    assert values.max() <= function.beta
    for other in range(1, 12):
        change = torch.linalg.matrix_norm(hessians[other] - hessians[0], ord=2)
        assert change <= function.lipschitz * (points[other] - points[0]).norm()
    assert slope(function, function.minimizer).norm() == 0


def test_a_skewed_quadratic_that_is_not_strongly_convex_is_refused():
    with pytest.raises(UserError, match="expected a strongly convex function"):
        SkewedQuadratic(torch.eye(2).double(), torch.eye(2).double(), point(9.0, 9.0))
    with pytest.raises(UserError, match="expected a symmetric matrix and positive weights"):
        SkewedQuadratic(torch.eye(2).double(), torch.eye(2).double(), point(-1.0, 1.0))
    with pytest.raises(UserError, match="expected n of 1 to 6"):
        random_skewed(7, 4.0, generator())


def test_derivatives_by_reverse_mode_are_those_of_the_fields():
    function, w = random_skewed(3, 4.0, generator()), point(0.3, -0.8, 0.5)
    at = derivatives(function, w)
    torch.testing.assert_close(at.gradient, gradient(function)(w))
    torch.testing.assert_close(at.hessian, hessian_of(function, w))
    torch.testing.assert_close(at.product, at.hessian @ at.gradient)
    step = 1e-5 * torch.eye(3).double()
    products = [derivatives(function, w + e).product - derivatives(function, w - e).product
                for e in step]  # fmt: skip
    torch.testing.assert_close(at.product_jacobian, torch.stack(products).mT / 2e-5, rtol=1e-7,
                               atol=1e-7)  # fmt: skip
    value, g = value_and_slope(function, w)
    assert value == float(function(w))
    torch.testing.assert_close(g, at.gradient)
    torch.testing.assert_close(slopes(function, w).product, at.product)
    torch.testing.assert_close(gradients(function, w[None])[0], at.gradient)


def test_the_derivatives_of_a_linear_function_are_zero_beyond_the_first():
    at = derivatives(lambda w: 2 * w[0] - w[1], point(1.0, 1.0))
    assert at.gradient.tolist() == [2.0, -1.0]
    for left in (at.hessian, at.product, at.product_jacobian, at.third_along_gradient):
        assert not left.any()


# the steepest point of a level set


@pytest.mark.parametrize("name", ["ellipse", "booth", "random"])
def test_a_quadratics_steepest_point_is_along_its_largest_eigenvalue(name):
    q = {"ellipse": ellipse(3.0), "booth": booth(), "random": random_quadratic(4, 9.0, generator())}
    function = q[name]
    found = steepest_point(function, function.minimizer, 2.5, generator(1))
    assert found.multiplier == pytest.approx(function.beta, rel=1e-12)
    assert found.gradient_norm**2 == pytest.approx(5 * function.beta, rel=1e-12)
    assert found.residual < 1e-12
    offset, expected = (w - function.minimizer for w in (found.point, function.steepest_point(2.5)))
    assert abs(float(offset @ expected)) == pytest.approx(float(expected @ expected), rel=1e-12)


def test_a_steepest_point_in_the_plane_is_the_one_found_by_brute_force():
    function = tilted_quartic()
    for level in (10.0, 0.3, 1e-3):
        found = steepest_point(function, ZERO, level, generator())
        angles = torch.linspace(0, 2 * math.pi, 20001).double()
        rays = torch.stack([angles.cos(), angles.sin()], dim=-1)
        norms = gradients(function, on_level_set(function, ZERO, level, rays)).norm(dim=-1)
        assert float(norms.max()) == pytest.approx(found.gradient_norm, rel=1e-6)
        assert float(norms.max()) <= found.gradient_norm * (1 + 1e-12)


@pytest.mark.parametrize("level", [1e2, 1e-4, 1e-20, 1e-40])
def test_steepest_points_solve_the_critical_equations_at_any_level(level):
    function = random_skewed(3, 4.0, generator())
    found = steepest_point(function, function.minimizer, level, generator(1))
    at = derivatives(function, found.point)
    off = at.hessian @ at.gradient - found.multiplier * at.gradient
    assert off.norm() <= 1e-12 * (at.hessian @ at.gradient).norm()
    assert float(at.value) == pytest.approx(level, rel=1e-12)


def test_newtons_method_on_the_critical_equations_finds_other_critical_points_too():
    """Here the flattest, from a start beside it."""
    found = solve_critical(ellipse(3.0), point(1.4, 0.02), 1.0)
    torch.testing.assert_close(found.point, point(2**0.5, 0.0), rtol=1e-12, atol=1e-12)
    assert found.multiplier == pytest.approx(1.0, rel=1e-12)


def test_rays_meet_the_level_set_once_each():
    rays = torch.randn(50, 2, generator=generator(), dtype=torch.float64)
    points = on_level_set(long_way, ZERO, 0.1, rays)
    values = torch.stack([long_way(w) for w in points])
    torch.testing.assert_close(values, torch.full_like(values, 0.1), rtol=1e-13, atol=0)
    torch.testing.assert_close(points / points.norm(dim=-1, keepdim=True),
                               rays / rays.norm(dim=-1, keepdim=True))  # fmt: skip


def test_a_function_that_is_not_strictly_convex_is_refused():
    def banana(w):
        return 0.1 * w[0] ** 2 + (w[1] - w[0] ** 2) ** 2

    with pytest.raises(UserError, match="expected a strictly convex function"):
        steepest_point(banana, ZERO, 1.0, generator())


def test_a_strictly_convex_function_without_a_minimizer_has_no_steepest_point():
    """e^x + e^y: Prop. 3.3's argmax is empty."""
    with pytest.raises(UserError, match="expected bounded level sets"):
        steepest_point(lambda w: w.exp().sum(), ZERO, 4.0, generator())


def test_a_level_at_or_below_the_minimum_is_refused():
    with pytest.raises(UserError, match="expected a level above the minimum"):
        steepest_point(half_square, ZERO, 0.0, generator())


# steps and bounds


def test_a_newton_step_on_a_quadratic_goes_to_the_minimizer():
    function = booth()
    w = point(4.0, -2.0)
    torch.testing.assert_close(damped_newton_step(function, w, 1.0), function.minimizer)
    torch.testing.assert_close(damped_newton_step(function, w, 0.5), (w + function.minimizer) / 2)


def test_a_newton_step_from_a_singular_hessian_is_refused():
    with pytest.raises(UserError, match="expected a positive definite Hessian"):
        damped_newton_step(flat_axis, point(1.0, 0.0), 1.0)


def test_the_order_of_a_known_series_is_found():
    before = np.geomspace(1e-1, 1e-6, 6)
    fitted = order_of_convergence(before, 3 * before**1.7)
    assert fitted.order == pytest.approx(1.7, rel=1e-12)
    assert fitted.constant == pytest.approx(3, rel=1e-10)
    assert fitted.pairs == 6
    for bad in ([0.1, 0.01], [0.1, 0.01, 0.0]):
        with pytest.raises(UserError, match="expected three or more pairs"):
            order_of_convergence(bad, bad)


@pytest.mark.parametrize("damping", [1.0, 1.3, 2.0])
@pytest.mark.parametrize("lipschitz", [0.5, 9.0])
def test_the_sharper_bound_is_attained_by_the_falling_curvature(damping, lipschitz):
    width = 0.7
    function, w = falling_curvature(1.0, lipschitz, width), point(width)
    constants = Constants(1.0, 1.0 + lipschitz * width, lipschitz)
    reached = abs(float(damped_newton_step(function, w, damping)))
    assert reached == pytest.approx(float(sharper_newton_bound(width, damping, constants)))
    assert reached <= float(newton_bound(width, damping, constants)) * (1 + 1e-12)


def test_the_falling_curvature_is_between_its_constants():
    for x, expected in ((-2.0, 10.0), (0.0, 10.0), (0.5, 5.5), (1.0, 1.0), (3.0, 1.0)):
        assert float(derivatives(falling_curvature(1.0, 9.0), point(x)).hessian) == expected


def test_eq_61_as_printed_fails_by_hand_on_half_a_square_and_the_corrected_bounds_hold():
    """f = x^2/2, lambda = 1/2, x = 1: the step lands at .5, printed .25."""
    unit = Constants(1.0, 1.0, 0.0)
    reached = float(damped_newton_step(half_square, point(1.0), 0.5))
    assert reached == pytest.approx(0.5)
    assert float(printed_newton_bound(1.0, 0.5, unit)) == 0.25
    assert float(newton_bound(1.0, 0.5, unit)) == float(sharper_newton_bound(1.0, 0.5, unit)) == 0.5


@pytest.mark.parametrize("lipschitz", [1.0, 9.0, 999.0])
def test_eq_61_as_printed_fails_at_every_condition_number_where_the_step_is_too_long(lipschitz):
    """By (lambda - 1)/2, for L = mu + G."""
    constants = Constants(1.0, 1.0 + lipschitz, lipschitz)
    reached = abs(float(damped_newton_step(falling_curvature(1.0, lipschitz), point(1.0), 1.5)))
    excess = reached - float(printed_newton_bound(1.0, 1.5, constants))
    assert excess == pytest.approx(0.25, rel=1e-9)
    assert reached <= float(newton_bound(1.0, 1.5, constants))


def test_a_full_step_from_the_ball_of_radius_mu_over_2l_may_leave_it():
    """Appendix C's remark: a radius that is a length is 2 mu/G, inside which steps come closer."""
    width, mu, lipschitz = 0.05, 1.0, 180.0
    function = falling_curvature(mu, lipschitz, width)
    assert width == pytest.approx(mu / (2 * (mu + lipschitz * width)))
    assert abs(float(damped_newton_step(function, point(width), 1.0))) > 4 * width
    for inside in np.linspace(0.001, 0.99 * 2 * mu / lipschitz, 5):
        assert abs(float(damped_newton_step(function, point(inside), 1.0))) < inside


def test_constants_that_are_not_of_a_strongly_convex_function_are_refused():
    for mu, beta, lipschitz in ((0.0, 1.0, 1.0), (2.0, 1.0, 1.0), (1.0, 1.0, -1.0)):
        with pytest.raises(UserError, match="expected 0 < mu <= beta"):
            Constants(mu, beta, lipschitz)
    with pytest.raises(UserError, match="expected a damping of 0 or more"):
        newton_bound(1.0, -0.1, Constants(1.0, 1.0, 0.0))


def test_in_the_distance_before_the_teleport_the_constant_is_larger_by_the_condition_number():
    constants = Constants(0.5, 2.0, 3.0)
    expected = 4 * newton_bound(0.3, 1.0, constants)
    assert float(bound_before_teleport(0.3, constants)) == pytest.approx(float(expected))


# the counterexamples of Prop. 3.3, by closed forms


def test_lambda_0_is_bounded_by_the_hessian_at_the_teleported_point_and_not_at_the_start():
    start = point(1.5**0.5, 0.0)
    found = steepest_point(quartic_well, ZERO, float(quartic_well(start)), generator())
    torch.testing.assert_close(found.point.abs(), point(0.0, 1.0))
    assert found.multiplier == pytest.approx(4.0, rel=1e-12)
    assert torch.linalg.eigvalsh(derivatives(quartic_well, found.point).hessian)[-1] == 4
    assert torch.linalg.eigvalsh(derivatives(quartic_well, start).hessian)[-1] == 1


def test_a_teleport_may_lead_away_from_the_minimizer():
    found = steepest_point(long_way, ZERO, 0.1, generator())

    top = brentq(lambda y: 0.05 * y**2 + y**8 - 0.1, 0, 1)  # there x = 0
    y = np.linspace(0, top, 1001)
    squares = 2 * (0.1 - 0.05 * y**2 - y**8) + (0.1 * y + 8 * y**7) ** 2
    assert squares.argmax() == 1000
    assert found.gradient_norm**2 == pytest.approx(squares[-1], rel=1e-10)
    assert float(found.point.norm()) == pytest.approx(0.722, abs=1e-3)
    assert float(found.point.norm()) > 1.6 * 0.2**0.5


def test_a_strictly_convex_function_may_have_a_singular_hessian_at_its_steepest_point():
    """On 5x^2 + y^4 = 1, ||g||^2 = 20 (1 - y^4) + 16 y^6 is largest at y = 0."""
    y = np.linspace(-1, 1, 2001)
    assert y[np.argmax(20 * (1 - y**4) + 16 * y**6)] == pytest.approx(0, abs=1e-12)
    found = steepest_point(flat_axis, ZERO, 1.0, generator())
    assert found.gradient_norm**2 == pytest.approx(20, rel=1e-10)
    at = derivatives(flat_axis, point(0.2**0.5, 0.0))
    assert torch.equal(at.hessian, torch.diag(point(10.0, 0.0)))
    torch.testing.assert_close(10 * torch.linalg.pinv(at.hessian) @ at.gradient, at.gradient)


# the study


def test_all_statements_of_the_newton_study_come_out_as_expected(outcome):
    assert outcome.as_expected, outcome.verdict
    assert outcome.study == "newton"
    assert outcome.picture.startswith(b"\x89PNG")


def test_the_orders_are_two_with_a_rate_measured_anew_and_one_without(outcome):
    assert check(outcome, "measured anew").margin == pytest.approx(2, abs=0.1)
    assert check(outcome, "of the first step").margin == pytest.approx(1, abs=0.05)
    assert check(outcome, "gradient descent without").margin == pytest.approx(1, abs=0.05)


def test_the_study_shows_the_printed_forms_failing_beside_the_corrected_ones(outcome):
    printed = [c for c in outcome.checks if "as printed" in c.statement]
    assert sum(not c.holds for c in printed) == 5
    assert check(outcome, "as printed", "L ≥ 2μ").holds
    assert all(c.holds for c in outcome.checks if "corrected" in c.statement)


@pytest.mark.parametrize(
    ("module", "name", "wrong", "failing"),
    [
        (
            newton,
            "sharper_newton_bound",
            lambda d, s, c: 0.5 * sharper_newton_bound(d, s, c),
            ("Lemma C.1 corrected", "λ G/(2μ)"),
        ),
        (
            newton_runs,
            "damped_newton_step",
            lambda f, w, s: damped_newton_step(f, w, 0.9 * s),
            ("eq. 11", "‖H⁻¹g‖"),
        ),
    ],
)
def test_a_wrong_constant_changes_the_newton_studys_verdict(
    module, name, wrong, failing, monkeypatch
):
    monkeypatch.setattr(module, name, wrong)
    monkeypatch.setattr(newton, "_picture", lambda *_: b"")
    monkeypatch.setattr(newton, "QUICK", newton.Scale((2,), 2, 2, 12))
    outcome = newton.study(True)
    assert not outcome.as_expected
    assert not check(outcome, *failing).holds
    assert check(outcome, "measured anew").holds
