"""Appendix B: v_perp, the steepest direction orthogonal to g, the angle between them, the study."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from theory_cases import check, generator, point

from metaopt import UserError
from studies.convergence import newton_direction
from studies.functions.level_set_examples import slope_and_half_square
from studies.functions.skewed import random_skewed
from studies.geometry.derivatives import derivatives, slope
from studies.geometry.newton_directions import (
    cosine,
    growth,
    kantorovich_cosine,
    newton_orthogonal,
    orthogonal_part,
    power_forms,
    printed_steepest,
    random_positive_definite,
    steepest_orthogonal,
    widest_case,
)


def draw(n, condition=50.0, draws=40, seed=0):
    """H and g."""
    g = torch.randn(draws, n, generator=generator(seed + 1), dtype=torch.float64)
    return random_positive_definite(n, condition, draws, generator(seed)), g


@pytest.fixture(scope="module")
def outcome():
    return newton_direction.study(True)


def test_random_matrices_have_the_condition_number_asked_for():
    values = torch.linalg.eigvalsh(random_positive_definite(5, 30.0, 10, generator()))
    torch.testing.assert_close(values[:, 0], torch.ones(10).double())
    torch.testing.assert_close(values[:, -1], torch.full((10,), 30.0).double())
    with pytest.raises(UserError, match="expected n of 2 or more"):
        random_positive_definite(1, 30.0, 1, generator())


def test_newtons_direction_is_the_sum_of_its_two_parts():
    """Eqs. 42 and 43."""
    h, g = draw(6)
    newton = -torch.linalg.solve(h, g)
    parallel = ((newton * -g).sum(-1) / g.square().sum(-1))[:, None] * -g
    torch.testing.assert_close(newton_orthogonal(h, g), newton - parallel)
    torch.testing.assert_close(newton_orthogonal(h, g, torch.linalg.inv(h)), newton - parallel)


def test_the_directions_are_orthogonal_to_the_gradient():
    h, g = draw(6)
    for direction in (
        newton_orthogonal(h, g),
        steepest_orthogonal(h, g),
        orthogonal_part(g @ h[0], g),
    ):
        assert float(cosine(direction, g).abs().max()) < 1e-14


def test_no_direction_orthogonal_to_the_gradient_is_steeper_than_the_projected_product():
    """Eq. 55, by trying: and its growth is 2 ||P H g||."""
    h, g = draw(4, draws=5)
    u = steepest_orthogonal(h, g)
    best = growth(h, g, u)
    torch.testing.assert_close(best, 2 * u.norm(dim=-1))
    tried = torch.randn(200, 5, 4, generator=generator(7), dtype=torch.float64)
    rates = growth(h, g, orthogonal_part(tried, g))
    assert (rates <= best).all()
    assert (rates.max(dim=0).values > 0.9 * best).all()


def test_the_growth_is_what_finite_differences_give_on_a_function():
    function, w = random_skewed(3, 9.0, generator()), point(0.5, -0.7, 0.2)
    at = derivatives(function, w)
    v = newton_orthogonal(at.hessian, at.gradient)
    step = 1e-5 * v / v.norm()
    squares = [slope(function, w + s * step).square().sum() for s in (1, -1)]
    expected = float(squares[0] - squares[1]) / 2e-5
    assert float(growth(at.hessian, at.gradient, v)) == pytest.approx(expected, rel=1e-7)


def test_the_directions_are_parallel_in_the_plane_and_where_two_eigenvectors_span_the_gradient():
    h, g = draw(2)
    torch.testing.assert_close(
        cosine(newton_orthogonal(h, g), steepest_orthogonal(h, g)), torch.ones(40).double()
    )
    h, g = torch.diag(point(1.0, 4.0, 9.0, 4.0)), point(2.0, 0.0, 1.0, 0.0)
    assert float(cosine(newton_orthogonal(h, g), steepest_orthogonal(h, g))) == pytest.approx(1)


def test_prop_b_3_as_printed_fails_by_hand_on_three_variables():
    """H = diag(1, 2, 3), g = (1, 1, 1): H g = (1, 2, 3) and H^-1 g = (1, 1/2, 1/3)."""
    h, g = torch.diag(point(1.0, 2.0, 3.0)), point(1.0, 1.0, 1.0)
    v, u = newton_orthogonal(h, g), steepest_orthogonal(h, g)
    torch.testing.assert_close(u, point(-1.0, 0.0, 1.0))
    torch.testing.assert_close(v, -point(7.0, -2.0, -5.0) / 18)
    assert float(growth(h, g, u)) == pytest.approx(8**0.5)
    assert float(growth(h, g, v)) == pytest.approx(24 / 78**0.5)
    assert float(cosine(v, u)) == pytest.approx(12 / 156**0.5)


@pytest.mark.parametrize("n", [3, 5, 20])
@pytest.mark.parametrize("condition", [1.5, 50.0, 1e4])
def test_the_cosine_keeps_above_kantorovichs_bound(n, condition):
    h, g = draw(n, condition, draws=200, seed=n)
    cosines = cosine(newton_orthogonal(h, g), steepest_orthogonal(h, g))
    assert cosines.min() >= kantorovich_cosine(condition)
    assert cosines.min() < 1 - 1e-4


@pytest.mark.parametrize("condition", [2.0, 50.0, 1e3])
def test_the_widest_case_comes_as_near_to_kantorovichs_bound_as_one_likes(condition):
    gaps = []
    for share in (1e-2, 1e-3, 1e-4):
        h, g = widest_case(condition, share)
        reached = cosine(newton_orthogonal(h, g), steepest_orthogonal(h, g))
        gaps.append(float(reached / kantorovich_cosine(condition)) - 1)
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[2] < 0.02


def test_the_newton_part_is_the_inverse_hessian_applied_to_the_steepest():
    """P H^-1 u = (g^T H g / ||g||^2) v_perp, which proves the bound and Prop. B.2."""
    h, g = draw(5)
    u = steepest_orthogonal(h, g)
    left = orthogonal_part(torch.linalg.solve(h, u), g)
    factor = (g * (h @ g[..., None])[..., 0]).sum(-1) / g.square().sum(-1)
    torch.testing.assert_close(left, factor[:, None] * newton_orthogonal(h, g))


def test_a_condition_number_below_one_is_refused():
    with pytest.raises(UserError, match="expected condition numbers of 1 or more"):
        kantorovich_cosine(0.5)


def test_power_forms_are_those_of_matrix_powers():
    a, w = draw(4, 5.0, draws=3)
    forms = power_forms(a, w, 2)
    for k in range(-4, 5):
        power = torch.linalg.matrix_power(a, k)
        torch.testing.assert_close(forms[k], ((power @ w[..., None])[..., 0] * w).sum(-1))


def test_eqs_45_and_46_count_the_diagonal_twice_and_their_difference_does_not():
    """Sums over i <= j; over i < j, with the squares once, they are right. Lemma B.1 stands."""
    d, x = np.array([1.0, 2.0, 5.0]), np.array([1.0, -2.0, 0.5])
    i, j = np.triu_indices(3)

    def printed(p, q):
        return np.sum((d[i] ** p * d[j] ** q + d[i] ** q * d[j] ** p) * x[i] ** 2 * x[j] ** 2)

    def product(p, q):
        return np.sum(d**p * x**2) * np.sum(d**q * x**2)

    alpha, beta = 1, 2
    twice = np.sum(d ** (2 * alpha) * x**4)
    assert printed(alpha, alpha) == pytest.approx(product(alpha, alpha) + twice)
    assert printed(alpha + beta, alpha - beta) == pytest.approx(
        product(alpha + beta, alpha - beta) + twice
    )
    assert product(alpha, alpha) <= product(alpha + beta, alpha - beta)


def test_the_inverse_in_lemma_b_1_has_the_inverse_of_the_diagonal():
    """Printed A^-1 = P D P^-1."""
    a = draw(3, 5.0, draws=1)[0][0]
    d, p = torch.linalg.eigh(a)
    assert not torch.allclose(torch.linalg.inv(a), p @ torch.diag(d) @ p.mT)
    torch.testing.assert_close(torch.linalg.inv(a), p @ torch.diag(1 / d) @ p.mT)


def test_eq_53_is_a_counterexample_as_the_paper_says():
    a, w = torch.diag(point(1.0, -2.0)), point(1.0, 3.0)
    forms = power_forms(a, w, 1)
    assert [float(forms[k]) for k in (-1, 0, 1)] == [-3.5, 10.0, -17.0]
    derivative = 2 * float((a @ w) @ newton_orthogonal(a, w))
    assert derivative == pytest.approx(2 * (-10 + 3.5 * 17 / 10))
    assert derivative < 0


def test_prop_b_2_fails_with_a_pseudo_inverse_and_holds_with_the_gradient_in_its_range():
    at = derivatives(slope_and_half_square, point(1.0, 0.0))
    h, g = at.hessian, at.gradient
    v = newton_orthogonal(h, g, torch.linalg.pinv(h))
    torch.testing.assert_close(v, point(-0.5, 0.5))
    assert float(2 * (h @ g) @ v) == -1
    inside = point(1.0, 0.0)
    assert float((h @ inside) @ newton_orthogonal(h, inside, torch.linalg.pinv(h))) >= 0


def test_prop_b_2_holds_in_the_limit_of_a_regularised_singular_hessian():
    at = derivatives(slope_and_half_square, point(1.0, 0.0))
    for damping in (1e-1, 1e-3, 1e-6):
        h = at.hessian + damping * torch.eye(2).double()
        assert float(at.product @ newton_orthogonal(h, at.gradient)) > 0


def test_eq_58_as_printed_is_not_orthogonal_to_the_gradient_and_with_a_factor_of_one_it_is():
    h, g = torch.diag(point(1.0, 2.0, 3.0)), point(1.0, 1.0, 1.0)
    torch.testing.assert_close(printed_steepest(h, g), point(-3.0, -2.0, -1.0))
    assert float(printed_steepest(h, g) @ g) == pytest.approx(-6)
    assert float(steepest_orthogonal(h, g) @ g) == pytest.approx(0, abs=1e-14)


def test_equality_in_prop_b_2_is_at_critical_points():
    h = torch.diag(point(1.0, 2.0, 3.0))
    assert not newton_orthogonal(h, point(0.0, 2.0, 0.0)).any()
    forms = power_forms(h, point(0.0, 2.0, 0.0), 1)
    assert forms[1] * forms[-1] == forms[0] ** 2


# the study


def test_all_statements_of_the_newton_direction_study_come_out_as_expected(outcome):
    assert outcome.as_expected, outcome.verdict
    assert outcome.study == "newton-direction"
    assert outcome.picture.startswith(b"\x89PNG")


def test_the_cosines_fall_with_the_dimension_and_are_one_in_the_plane(outcome):
    table = outcome.facts["cosine"]
    medians = [table[f"n = {n}, kappa = 100"][2] for n in (2, 3, 10, 50)]
    assert medians == sorted(medians, reverse=True)
    assert medians[0] == pytest.approx(1)
    assert medians[-1] < 0.8


def test_the_study_shows_prop_b_3_failing_for_three_and_more_dimensions_only(outcome):
    assert check(outcome, "for n = 2").holds
    assert not check(outcome, "for n ≥ 3").holds
    assert check(outcome, "in its place").margin == pytest.approx(1, abs=0.5)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("kantorovich_cosine", lambda k: 2 * kantorovich_cosine(k)),
        ("newton_orthogonal", lambda *a: -newton_orthogonal(*a)),
    ],
)
def test_a_wrong_constant_changes_the_newton_direction_studys_verdict(name, wrong, monkeypatch):
    monkeypatch.setattr(newton_direction, name, wrong)
    monkeypatch.setattr(newton_direction, "_picture", lambda *_: b"")
    outcome = newton_direction.study(True)
    assert not outcome.as_expected
    assert not check(outcome, "in its place").holds
    assert check(outcome, "Lemma B.1:").holds
