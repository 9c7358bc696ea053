"""Definition 3.4, Props 3.5 to 3.7 and D.3: brackets, flows, the invalid inference, the study."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from theory_cases import check, generator, point

from metaopt import UserError
from studies.convergence import one_teleport, one_teleport_algebra
from studies.functions.level_set_examples import (
    cubic_drift,
    exponential_drift,
    half_square,
    radial,
    ridge,
    tilted_quartic,
    two_axes,
)
from studies.functions.quadratic import Quadratic, booth, ellipse, random_quadratic
from studies.functions.skewed import random_skewed
from studies.geometry.derivatives import derivatives, slope
from studies.geometry.fields import (
    along,
    antisymmetric_basis,
    bracket,
    gradient,
    reverse_gradient,
    squared_gradient,
    turned_gradient,
)
from studies.geometry.optimal_flows import (
    bracket_rate,
    bracket_rate_formula,
    companion,
    condition_d3,
    condition_in_section_3,
    descent,
    equation_12,
    gradient_flow,
    loss_bracket,
    steepest_squares,
    third_derivative,
    times_at_steepest,
)

(TURN,) = antisymmetric_basis(2)


@pytest.fixture(scope="module")
def outcome():
    return one_teleport.study(True)


# brackets with the loss


def test_the_bracket_of_the_loss_is_minus_the_growth_of_the_squared_gradient():
    """Eq. 65, with its sign, by hand on the ellipse with A = (-g_y, g_x)."""
    function, w = ellipse(3.0), point(0.7, -0.4)
    m = -TURN  # the first row of which is (0, -1)
    x, y = w
    by_hand = -2 * (-(9 * y) * x + x * 81 * y)
    torch.testing.assert_close(turned_gradient(function, m)(w), torch.stack([-9 * y, x]))
    torch.testing.assert_close(loss_bracket(function, m)(w), by_hand)
    growth = along(turned_gradient(function, m), squared_gradient(function))(w)
    torch.testing.assert_close(loss_bracket(function, m)(w), -growth)


def test_the_rate_of_the_bracket_is_what_finite_differences_along_r_give():
    function, w = tilted_quartic(), point(0.6, 0.3)
    value = loss_bracket(function, TURN)
    step = 1e-5 * reverse_gradient(function)(w)
    expected = float(value(w + step) - value(w - step)) / 2e-5
    assert float(bracket_rate(function, TURN)(w)) == pytest.approx(expected, rel=1e-7)
    assert float(bracket_rate_formula(function, w, TURN)) == pytest.approx(expected, rel=1e-7)


def test_eq_12_is_the_sum_over_indices_that_it_is_printed_as():
    function, w = random_skewed(3, 4.0, generator()), point(0.4, -0.2, 0.9)
    third, g = third_derivative(function, w), slope(function, w)
    for m in antisymmetric_basis(3):
        printed = torch.einsum("ja,k,a,kij,i->", m, g, g, third, g)
        torch.testing.assert_close(equation_12(function, w, m), printed)


def test_third_derivatives_are_symmetric_and_right_by_hand():
    third = third_derivative(tilted_quartic(), point(0.6, 0.3))
    a = point(0.5, 0.75**0.5)
    z = float(a @ point(0.6, 0.3))
    torch.testing.assert_close(third, 24 * z * torch.einsum("i,j,k->ijk", a, a, a))


@pytest.mark.parametrize("n", [2, 3, 4])
def test_on_quadratics_the_rates_are_combinations_of_brackets_with_smooth_factors(n):
    function = random_quadratic(n, 10.0, generator())
    w = torch.randn(n, generator=generator(1), dtype=torch.float64)
    for m in antisymmetric_basis(n):
        factor, k = companion(function, w, m)
        assert torch.equal(k, -k.mT)
        combined = -factor * loss_bracket(function, m)(w) - loss_bracket(function, k)(w)
        torch.testing.assert_close(bracket_rate(function, m)(w), combined)


def test_a_field_orthogonal_to_the_gradient_need_not_be_a_constant_matrix_times_it():
    """After Lemma D.2, S = X_perp is printed; at each point they have the same vectors."""

    def field(w):
        return w[0] * torch.stack([-w[1], w[0]])

    points = torch.randn(4, 2, generator=generator(), dtype=torch.float64)
    needed = []
    for w in points:
        g = slope(half_square, w)
        assert abs(float(field(w) @ g)) < 1e-14
        unit = TURN @ g
        needed.append(float(field(w) @ unit / unit.square().sum()))
        torch.testing.assert_close(field(w), needed[-1] * unit)
    assert max(needed) - min(needed) > 0.1


def test_lemma_d_1_has_a_matrix_in_closed_form_and_lemma_d_2s_misprint_is_no_such_set():
    """M = (v w^T - w v^T) / ||w||^2; printed M^T = M^-1 takes in the identity."""
    w = point(1.0, -2.0, 0.5)
    v = point(2.0, 1.0, 0.0)
    m = (torch.outer(v, w) - torch.outer(w, v)) / w.square().sum()
    assert torch.equal(m, -m.mT)
    torch.testing.assert_close(m @ w, v)
    identity = torch.eye(3).double()
    assert torch.equal(identity.mT, torch.linalg.inv(identity))
    assert float((identity @ w) @ w) > 0


# flows


def test_a_gradient_flow_on_a_quadratic_is_its_exponential():
    flow = gradient_flow(ellipse(3.0), point(2.0, 1.0), [0.0, 0.1, 0.5])
    expected = torch.stack([point(2 * np.exp(-t), np.exp(-9 * t)) for t in flow.times])
    torch.testing.assert_close(flow.points, expected, rtol=1e-9, atol=1e-12)
    values = 0.5 * (expected[:, 0] ** 2 + 9 * expected[:, 1] ** 2)
    np.testing.assert_allclose(flow.losses, values, rtol=1e-9)
    np.testing.assert_allclose(
        flow.squares, expected[:, 0] ** 2 + 81 * expected[:, 1] ** 2, rtol=1e-9
    )


def test_a_descent_is_the_same_flow_at_given_levels():
    function, start = tilted_quartic(), point(0.6, 0.3)
    levels = float(function(start)) * np.array([1.0, 0.1, 1e-3])
    fallen = descent(function, start, levels)
    np.testing.assert_allclose(fallen.losses, levels, rtol=1e-9)
    flow = gradient_flow(function, start, fallen.times)
    torch.testing.assert_close(flow.points, fallen.points, rtol=1e-8, atol=1e-10)


def test_a_descent_to_a_level_out_of_reach_is_refused():
    start = point(1.0, 1.0)
    with pytest.raises(UserError, match="expected levels that fall"):
        descent(half_square, start, [1.0, 0.0])
    with pytest.raises(UserError, match="expected the first level to be that of the start"):
        descent(half_square, start, [2.0, 0.5])


@pytest.mark.parametrize("name", ["ellipse", "booth", "random"])
def test_a_quadratics_flow_from_its_steepest_point_stays_steepest(name):
    q = {"ellipse": ellipse(), "booth": booth(), "random": random_quadratic(5, 10.0, generator())}
    function = q[name]
    levels = np.array([2.0, 0.2, 0.002])
    fallen = descent(function, function.steepest_point(2.0), levels)
    np.testing.assert_allclose(fallen.squares, 2 * function.beta * levels, rtol=1e-8)
    expected = np.log(levels[0] / levels) / (2 * function.beta)
    np.testing.assert_allclose(fallen.times, expected, rtol=1e-8, atol=1e-12)


def test_a_quadratics_flow_from_its_flattest_point_is_optimal_by_definition_3_4_too():
    """A critical point of ||g|| on its level set, and the slowest."""
    function, levels = ellipse(5.0), np.array([0.5, 0.05])
    flow = descent(function, point(1.0, 0.0), levels)
    for w in flow.points:
        assert abs(float(loss_bracket(function, TURN)(w))) < 1e-12
    np.testing.assert_allclose(flow.squares * 25, 2 * function.beta * levels, rtol=1e-8)


def test_teleporting_at_all_times_takes_the_time_it_takes_on_an_ellipse():
    function, levels = ellipse(3.0), np.geomspace(1.0, 1e-2, 6)
    squares = steepest_squares(function, function.minimizer, levels.tolist(), generator())
    np.testing.assert_allclose(squares, 18 * levels, rtol=1e-10)
    np.testing.assert_allclose(
        times_at_steepest(levels, squares), np.log(levels[0] / levels) / 18, rtol=1e-9, atol=1e-15
    )


def test_the_steepest_squares_of_two_axes_are_the_larger_of_the_two_axes_at_high_and_low_levels():
    levels = [1.5, 1e-3]
    squares = steepest_squares(two_axes, torch.zeros(2).double(), levels, generator())
    np.testing.assert_allclose(squares, [25.0, 8e-3], rtol=1e-10)


# the invalid inference, and the condition of Prop. D.3


@pytest.mark.parametrize("function", [cubic_drift, exponential_drift])
def test_a_flow_may_leave_the_optimal_points_though_value_and_derivative_are_zero_there(function):
    for x in (-0.4, 0.0, 0.2):
        w = point(x, 0.0)
        for value in (loss_bracket, bracket_rate):
            assert float(value(function, TURN)(w)) == 0
        assert float(equation_12(function, w, TURN)) == 0
    flow = gradient_flow(function, point(0.2, 0.0), [0.0, 0.1])
    assert abs(float(loss_bracket(function, TURN)(flow.points[-1]))) > 0.06
    if function is cubic_drift:
        reached = abs(float(loss_bracket(function, TURN)(flow.points[-1])))
        assert reached == pytest.approx(0.061, abs=5e-4)


def test_the_cubic_drift_has_no_other_optimal_points_in_its_square():
    axis = torch.linspace(-0.49, 0.49, 21).double()
    for x in axis:
        for y in axis[axis.abs() > 0.01]:
            g = torch.stack([y**3, 1 + 3 * x * y**2])
            h = torch.stack([torch.stack([0 * x, 3 * y**2]), torch.stack([3 * y**2, 6 * x * y])])
            assert abs(float((TURN @ g) @ (h @ g))) > 1e-5


def test_the_brackets_zero_is_simple_where_flows_stay_and_double_where_one_leaves():
    """At a nondegenerate maximum of a level set d[A, R]L is not 0; on a drifting function it is."""
    w = ellipse(3.0).steepest_point(1.0)
    tangent = TURN @ slope(ellipse(3.0), w)
    change = along(lambda _: tangent, loss_bracket(ellipse(3.0), TURN))(w)
    assert abs(float(change)) > 1
    start = point(0.2, 0.0)
    sideways = TURN @ slope(cubic_drift, start)
    assert float(along(lambda _: sideways, loss_bracket(cubic_drift, TURN))(start)) == 0


def test_prop_d_3s_condition_holds_where_the_third_derivative_is_a_cube_of_the_gradient():
    g = torch.randn(3, generator=generator(), dtype=torch.float64)
    cube = torch.einsum("i,j,k->ijk", g, g, g)
    assert condition_d3(2.5 * cube, g) < 1e-14
    other = torch.randn(3, generator=generator(1), dtype=torch.float64)
    assert condition_d3(torch.einsum("i,j,k->ijk", other, other, other), g) > 0.01
    assert condition_d3(torch.zeros(3, 3, 3).double(), g) == 0


def test_a_function_of_one_linear_combination_meets_prop_d_3_and_has_flat_level_sets():
    """So that no teleport changes its gradient norm; section 3.3's form of the condition fails."""
    w = point(0.3, -0.4)
    along_level = point(2.0, -1.0)
    norms = [float(slope(ridge, w + t * along_level).norm()) for t in (-1.0, 0.0, 2.0)]
    assert max(norms) - min(norms) < 1e-13
    third, g = third_derivative(ridge, w), slope(ridge, w)
    assert third.norm() > 0.1
    assert condition_d3(third, g) < 1e-14
    assert condition_in_section_3(third, g) > 0.1


def test_eq_12_holds_for_functions_of_the_norm_and_prop_d_3s_condition_does_not():
    w = point(0.5, -0.3, 0.8)
    for m in antisymmetric_basis(3):
        assert abs(float(equation_12(radial, w, m))) < 1e-14
    assert condition_d3(third_derivative(radial, w), slope(radial, w)) > 0.1


def test_eq_77_needs_an_optimal_point():
    function, w = random_quadratic(3, 10.0, generator()), point(0.4, -0.2, 0.9)
    at = derivatives(function, w)
    assert at.third_along_gradient.norm() < 1e-12 * at.product.norm()
    rates = [abs(float(bracket_rate(function, m)(w))) for m in antisymmetric_basis(3)]
    assert max(rates) > 1e-2


def test_a_symmetry_that_leaves_the_gradient_norm_may_change_the_convergence():
    """On (x^2 + 2y^2 + 3z^2)/2 along grad L x grad ||g||^2, which has [A, R]L = 0 everywhere."""
    d = point(1.0, 2.0, 3.0)
    function = Quadratic(torch.diag(d), torch.zeros(3).double())

    def symmetry(w):
        return torch.linalg.cross(d * w, 2 * d**2 * w)

    w = point(0.3, -0.5, 0.9)
    square_slope = gradient(squared_gradient(function))(w)
    torch.testing.assert_close(symmetry(w), torch.linalg.cross(slope(function, w), square_slope))
    with_loss = along(bracket(symmetry, reverse_gradient(function)), function)
    assert abs(float(with_loss(w))) < 1e-13
    squares = torch.stack([point(1.0, 1.0, 1.0), point(1.6, 0.4, 1.2)])  # X + .1 (6, -6, 2)
    for weights in (d, d**2):  # L and ||g||^2 are the same
        first, second = squares @ weights
        assert float(first) == pytest.approx(float(second))
    falls = 0.5 * (squares * d) @ torch.exp(-2 * d)  # L at t = 1
    assert float(falls[1] / falls[0]) > 1.3


# the study


def test_all_statements_of_the_one_teleport_study_come_out_as_expected(outcome):
    assert outcome.as_expected, outcome.verdict
    assert outcome.study == "one-teleport"
    assert outcome.picture.startswith(b"\x89PNG")


def test_eq_66_holds_with_a_plus_and_fails_as_printed(outcome):
    assert check(outcome, "eq. 66 with +R").holds
    assert check(outcome, "eq. 66 as printed").margin == pytest.approx(2)


def test_one_teleport_loses_the_rate_of_teleporting_at_all_times(outcome):
    for name in ("tilted quartic", "two axes"):
        facts = outcome.facts["flows"][name]
        assert facts["time_once_by_always"] > 3
        once, always = facts["last_rates_once_and_always"]
        assert once == pytest.approx(2, rel=1e-2)
        assert always == pytest.approx(8, rel=1e-2)
    for name in ("ellipse", "Booth", "random"):
        assert outcome.facts["flows"][name]["time_once_by_always"] == pytest.approx(1, rel=1e-8)


def test_a_wrong_constant_changes_the_one_teleport_studys_verdict(monkeypatch):
    monkeypatch.setattr(
        one_teleport_algebra, "bracket_rate_formula", lambda *a: 0.5 * bracket_rate_formula(*a)
    )
    monkeypatch.setattr(one_teleport, "_picture", lambda *_: b"")
    monkeypatch.setattr(one_teleport, "QUICK", one_teleport.Scale(1, 16, 3, 2))
    wrong = one_teleport.study(True)
    assert not wrong.as_expected
    assert not check(wrong, "eq. 66 with +R").holds
    assert check(wrong, "eq. 65").holds
