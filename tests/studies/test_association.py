"""Correlations of the generalization study are scipy's, with intervals that mean something."""

import math

import numpy as np
import pytest
from scipy import stats

from studies.generalization.association import (
    Correlation,
    coefficient,
    partial_pearson,
    pearson,
    spearman,
)

NAN, INF = float("nan"), float("inf")
SIZES = (12, 100, 1000)


def three(count=40, seed=0):
    """Two samples that go together, in part since both depend on the third."""
    rng = np.random.default_rng(seed)
    z, a, b = rng.normal(size=(3, count))
    return a + z, b + 0.5 * a - 2 * z, z


def left_of(a, z):
    """Of ``a`` when it is predicted from ``z`` and a constant by least squares."""
    design = np.stack([z, np.ones_like(z)], axis=1)
    return a - design @ np.linalg.lstsq(design, a, rcond=None)[0]


WAYS = {
    "pearson": lambda a, b, z: pearson(a, b),
    "spearman": lambda a, b, z: spearman(a, b),
    "partial": partial_pearson,
}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


# The values.


@pytest.mark.parametrize("seed", range(3))
def test_pearson_is_that_of_scipy(seed):
    a, b, _ = three(seed=seed)
    assert pearson(a, b).value == pytest.approx(stats.pearsonr(a, b).statistic, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_spearman_is_that_of_scipy_with_ties(seed):
    a, b, _ = (np.round(2 * x) for x in three(seed=seed))
    assert len(np.unique(a)) < len(a) / 2
    value = spearman(a, b).value
    assert value == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert abs(value - stats.pearsonr(a, b).statistic) > 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_a_partial_correlation_is_that_of_what_regression_leaves(seed):
    a, b, z = three(seed=seed)
    wanted = stats.pearsonr(left_of(a, z), left_of(b, z)).statistic
    assert partial_pearson(a, b, z).value == pytest.approx(wanted, abs=1e-12)
    assert abs(wanted - pearson(a, b).value) > 0.1


def test_a_common_cause_can_turn_the_sign():
    a, b, z = three(1000)
    assert pearson(a, b).high < 0
    assert partial_pearson(a, b, z).low > 0


def test_what_is_constant_explains_nothing():
    a, b, _ = three()
    given_nothing = partial_pearson(a, b, np.full_like(a, 2.0))
    assert given_nothing == pytest.approx(pearson(a, b), abs=1e-12)


def test_nothing_is_left_of_what_is_given():
    a, b, _ = three()
    assert math.isnan(partial_pearson(a, b, a).value)
    assert math.isnan(partial_pearson(a, b, 3 - 2 * b).value)


def test_a_line_has_a_correlation_of_one_and_a_monotone_curve_has_one_of_ranks():
    a, _, _ = three()
    assert pearson(a, 2 * a - 1) == pytest.approx((1, 1, 1))
    assert pearson(a, 1 - 2 * a) == pytest.approx((-1, -1, -1))
    assert spearman(a, np.exp(3 * a)) == pytest.approx((1, 1, 1))
    assert pearson(a, np.exp(3 * a)).value < 0.8


@each_way
def test_units_and_the_order_of_the_two_do_not_matter(way):
    a, b, z = three()
    assert way(b, a, z) == pytest.approx(way(a, b, z), abs=1e-12)
    assert way(1e3 * a - 7, 1e-3 * b + 5, z - 1) == pytest.approx(way(a, b, z), abs=1e-9)


def test_the_coefficient_is_along_the_last_axis():
    a, b = np.random.default_rng(0).normal(size=(2, 3, 4, 9))
    found = coefficient(a, b)
    assert found.shape == (3, 4)
    assert found[1, 2] == pytest.approx(stats.pearsonr(a[1, 2], b[1, 2]).statistic, abs=1e-12)


# The intervals.


@each_way
def test_an_interval_holds_the_value_and_shrinks_with_the_sample(way):
    widths = []
    for count in SIZES:
        found = way(*three(count))
        assert -1 <= found.low < found.value < found.high <= 1
        widths.append(found.high - found.low)
    assert widths[0] > 1.5 * widths[1]
    assert widths[1] == pytest.approx(10**0.5 * widths[2], rel=0.3)


def test_an_interval_of_many_normal_pairs_is_fishers():
    a, b, _ = three(1000)
    low, high = stats.pearsonr(a, b).confidence_interval(0.95)
    assert pearson(a, b)[1:] == pytest.approx((low, high), abs=0.02)


@each_way
def test_three_networks_are_enough_for_an_interval(way):
    """Though one draw in nine is of one network three times, which has no correlation."""
    found = way(np.array([1.0, 2.0, 4.0]), np.array([3.0, 5.0, 4.0]), np.array([1.0, 0.0, 0.0]))
    assert -1 - 1e-9 <= found.low <= found.value <= found.high <= 1 + 1e-9


@each_way
def test_every_call_gives_the_same_numbers_whatever_else_is_drawn(way):
    samples = three()
    first = way(*samples)
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    assert way(*samples) == first
    assert np.array_equal(np.random.get_state()[1], before)


@each_way
def test_the_samples_stay_as_they_are(way):
    samples = three()
    samples[0][3] = NAN
    copies = [sample.copy() for sample in samples]
    way(*samples)
    for sample, copy in zip(samples, copies, strict=True):
        assert np.array_equal(sample, copy, equal_nan=True)


# Where there is nothing to correlate.


@each_way
@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_pairs_have_no_correlation(way, count):
    found = way(*three(count))
    assert [math.isnan(number) for number in found] == [True] * 3


@each_way
@pytest.mark.parametrize("constant", [0.0, 7.0, -0.25, 0.1, 1e-5])
@pytest.mark.parametrize("count", [3, 7])
def test_a_constant_has_no_correlation(way, constant, count):
    """0.1 is no sum of a few powers of two, so that a mean of seven is not 0.1 itself."""
    a, b, z = three(count)
    same = np.full(count, constant)
    for pair in ((same, b), (a, same), (same, same)):
        found = way(*pair, z)
        assert [math.isnan(number) for number in found] == [True] * 3, found


@each_way
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_pairs_that_are_not_finite_are_left_out(way, bad):
    samples = three(20)
    kept = [np.delete(sample, [2, 11]) for sample in samples]
    samples[0][2] = samples[1][11] = bad
    assert way(*samples) == way(*kept)


def test_a_pair_counts_only_if_what_is_given_is_finite():
    a, b, z = three(20)
    z[4] = NAN
    kept = [np.delete(sample, 4) for sample in (a, b, z)]
    assert partial_pearson(a, b, z) == partial_pearson(*kept)


def test_nothing_finite_has_no_correlation():
    a, b, _ = three(5)
    assert math.isnan(pearson(np.full(5, NAN), b).value)
    assert math.isnan(spearman(a, np.array([1.0, 2.0, NAN, INF, -INF])).value)


def test_it_is_shown_with_its_interval():
    assert str(Correlation(0.70449, -0.05, 1.0)) == "0.704 [-0.050, 1.000]"
