"""Distances to shifted minima (appendix F.2), curves cut by planes (Fig. 9), and their study."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from metaopt.errors import UserError
from studies.convergence import curvature_dimensions, curvature_shift
from studies.geometry.sections import Section, height, mean_over_normal_planes
from studies.geometry.shifts import (
    Circle,
    Parabola,
    arc_integral,
    flat_mean,
    mean_distance,
    on_sphere,
    printed_circle,
    sampled_distances,
    small_shift,
    torus_mean,
)

CURVES = {"parabola": Parabola, "circle": Circle}


@pytest.fixture(scope="module")
def outcome():
    return curvature_shift.study(quick=True)


def named(checks, part):
    found = [check for check in checks if part in check.statement]
    assert found
    return found


@pytest.mark.parametrize("k", [1e-3, 0.7, 50.0])
def test_the_distance_to_a_parabola_is_that_of_a_search(k):
    points = np.random.default_rng(0).normal(size=(40, 2)) * 2
    points[:4] = [[0, 3], [0, -1], [0, 0.5 / k], [0, 0]]
    for point, found in zip(points, Parabola(k).distance(points), strict=True):

        def distance(t, point=point):
            return math.hypot(t - point[0], k * t * t - point[1])

        width = abs(point[0]) + math.sqrt(abs(point[1]) / k) + 1
        grid = np.linspace(-width, width, 2001)
        near = grid[np.argmin([distance(t) for t in grid])]
        step = grid[1] - grid[0]
        best = minimize_scalar(
            distance, bounds=(near - step, near + step), method="bounded", options={"xatol": 1e-12}
        ).fun
        assert found == pytest.approx(best, rel=1e-6, abs=1e-6)
        assert found <= best + 1e-12


def test_the_distance_to_a_circle_is_to_the_one_through_the_origin():
    circle = Circle(2.0)
    assert circle.distance(np.array([[0.0, 2.0], [0.0, 0.0], [0.0, 5.0], [3.0, 2.0]])) == (
        pytest.approx([2.0, 0.0, 1.0, 1.0], abs=1e-15)
    )
    t = torch.tensor(0.9, dtype=torch.float64)
    assert circle.distance(circle.point(t).numpy()) == pytest.approx(0, abs=1e-15)
    assert printed_circle(2.0, t).norm().item() == pytest.approx(2.0)


@pytest.mark.parametrize("s", [1e-3, 0.5, 1.0, 1.999, 2.0, 3.0, 40.0])
def test_the_mean_distance_to_a_circle_is_its_closed_form(s):
    circle = Circle.of_curvature(s / 1.7)
    assert mean_distance(circle, 1.7) == pytest.approx(circle.mean_distance(1.7), rel=1e-10)


def test_the_numbers_of_the_errata_come_out():
    means = [mean_distance(Circle.of_curvature(s), 1.0) for s in (0.01, 2, 20)]
    assert means == pytest.approx([0.637, 0.564, 0.951], abs=5e-4)


@pytest.mark.parametrize("name", CURVES)
def test_sampling_agrees_with_quadrature(name):
    curve = CURVES[name](1.3)
    drawn = sampled_distances(curve, 0.8, 40_000, torch.Generator().manual_seed(0))
    error = drawn.std() / math.sqrt(len(drawn))
    assert abs(drawn.mean() - mean_distance(curve, 0.8)) < 4 * error


@pytest.mark.parametrize("name", CURVES)
def test_the_mean_scales_as_r_and_the_arc_integral_as_its_square(name):
    make = CURVES[name].of_curvature
    at_one, at_three = mean_distance(make(1.5), 1.0), mean_distance(make(0.5), 3.0)
    assert at_three == pytest.approx(3 * at_one, rel=1e-10)
    assert arc_integral(make(0.5), 3.0) == pytest.approx(9 * arc_integral(make(1.5), 1.0))


@pytest.mark.parametrize("dimension", [2, 3, 4, 6])
@pytest.mark.parametrize("name", CURVES)
def test_small_shifts_know_only_the_curvatures(name, dimension):
    """The error of the law is of fourth order: it falls by 16 when the shift is halved."""
    make = CURVES[name].of_curvature
    errors = [
        abs(mean_distance(make(s), 1.0, dimension) - small_shift([s] * (dimension - 1), 1.0))
        for s in (0.2, 0.1)
    ]
    assert errors[0] < 2e-3 * 0.2**2
    assert errors[1] < errors[0] / 14 + 1e-13


@pytest.mark.parametrize("inner", [False, True])
def test_small_shifts_of_a_torus_know_the_difference_of_its_curvatures(inner):
    r = 0.02
    other = -1 / 2 if inner else 1 / 4
    fall = 0.5 - torus_mean(3.0, 1.0, r, inner) / r
    assert fall == pytest.approx((1 - other) ** 2 * r**2 / 64, rel=1e-3)


def test_a_sphere_in_three_dimensions_is_as_far_as_a_plane():
    assert mean_distance(Circle(1.0), 0.9, 3) == pytest.approx(0.45, rel=1e-10)
    assert flat_mean(3) == pytest.approx(0.5)
    assert flat_mean(2) == pytest.approx(2 / math.pi)


def test_the_mean_over_the_circle_weighs_all_directions_alike():
    theta = np.linspace(0, 2 * math.pi, 20001)[:-1]
    curve = Parabola(0.9)
    mean = curve.distance(on_sphere(1.1, theta)).mean()
    assert mean == pytest.approx(mean_distance(curve, 1.1), rel=1e-6)


@pytest.mark.parametrize(
    "call",
    [
        partial(Parabola, 0.0),
        partial(Circle, -1.0),
        partial(mean_distance, Circle(1.0), 0.0),
        partial(mean_distance, Circle(1.0), 1.0, 1),
        partial(torus_mean, 2.0, 1.0, 0.6),
        partial(Section, (1.0, 1.0), 0.0, 1.6),
        partial(sampled_distances, Circle(1.0), 1.0, 0, torch.Generator()),
    ],
)
def test_what_has_no_meaning_is_refused_in_one_line(call):
    with pytest.raises(UserError, match=r"^expected .*, got .*: .*$"):
        call()


@pytest.mark.parametrize("tilt", [0.0, 1.1, -0.6])
def test_a_cut_lies_on_the_minimum_and_in_its_plane(tilt):
    section = Section((1.0, -2.0), 0.5, tilt)
    cos, sin = math.cos(0.5), math.sin(0.5)
    u, side, up = torch.tensor([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]], dtype=torch.float64)
    normal = math.cos(tilt) * side - math.sin(tilt) * up
    for t in torch.linspace(-0.1, 0.1, 5, dtype=torch.float64):
        point = section.point(t)
        assert height(point, (1.0, -2.0)).abs() < 1e-15
        assert (point @ normal).abs() < 1e-15
        assert (point @ u - t).abs() < 1e-15


def test_the_curvature_of_a_cut_is_that_of_finite_differences():
    section, h = Section((1.0, 3.0), 0.7, 0.9), 1e-3
    before, here, after = (
        section.point(torch.tensor(t, dtype=torch.float64)) for t in (-h, 0.0, h)
    )
    bend = ((after - 2 * here + before) / h**2).norm()
    assert bend.item() == pytest.approx(section.curvature, rel=1e-4)


def test_the_mean_over_normal_planes_is_the_mean_curvature_only_without_a_saddle():
    assert mean_over_normal_planes((1.0, 3.0)) == pytest.approx(2.0)
    assert mean_over_normal_planes((1.0, -1.0)) == pytest.approx(2 / math.pi)


def test_the_study_of_curvature_comes_out_as_expected(outcome):
    assert outcome.as_expected, outcome.verdict
    assert outcome.study == "curvature-shift"
    assert outcome.picture.startswith(b"\x89PNG")


def test_the_printed_circle_and_scaling_fail_and_the_moved_ones_hold(outcome):
    printed = named(outcome.checks, "as printed")
    assert len(printed) == 3
    assert not any(check.holds for check in printed)
    assert all(check.holds for check in named(outcome.checks, "the moved circle"))
    assert all(check.holds for check in named(outcome.checks, "Fig. 8's scaling, stands"))


def test_the_mean_distance_neither_rises_nor_falls_with_the_curvature(outcome):
    checks = named(outcome.checks, "with the curvature")
    assert len(checks) == 4
    assert not any(check.holds for check in checks)


@pytest.mark.parametrize("factor", [-1.0, 0.5])
def test_a_wrong_constant_in_the_law_of_small_shifts_is_seen(monkeypatch, factor):
    def wrong(principal, r):
        flat = flat_mean(len(principal) + 1)
        return flat + factor * (small_shift(principal, r) - flat)

    monkeypatch.setattr(curvature_dimensions, "small_shift", wrong)
    checks = curvature_dimensions.more_dimensions({})
    assert not checks[0].as_expected
    assert not checks[1].as_expected


def test_a_wrong_curvature_of_cuts_is_seen(monkeypatch):
    right = Section.curvature.fget
    monkeypatch.setattr(Section, "curvature", property(lambda s: right(s) * math.cos(s.tilt)))
    assert not all(check.as_expected for check in curvature_dimensions.cut_curves(4, {}))


def test_a_wrong_limit_of_the_mean_distance_is_seen(monkeypatch):
    monkeypatch.setattr(curvature_shift, "picture", lambda *args: b"")
    monkeypatch.setitem(curvature_shift.LIMITS, "parabola", 0.5)
    monkeypatch.setattr(
        curvature_shift, "arc_integral", lambda curve, r: math.pi * mean_distance(curve, r)
    )
    wrong = curvature_shift.study(quick=True)
    surprises = [check.statement for check in wrong.checks if not check.as_expected]
    assert len(surprises) == 3
    assert any("limit" in statement for statement in surprises)
    assert sum("arc integral" in statement for statement in surprises) == 2
