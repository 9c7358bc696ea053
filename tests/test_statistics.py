"""Geometric means, their intervals, and the cells of the table."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from metaopt.evaluation.evaluate import Result
from metaopt.evaluation.methods import BASELINES
from metaopt.evaluation.rollout import Trajectory
from metaopt.evaluation.statistics import GeometricMean, geometric_mean, log_mean_bands
from metaopt.evaluation.table import (
    Line,
    as_text,
    cells,
    headings,
    number,
    reported_steps,
    summarise,
)


def losses(count: int, seed: int = 0) -> np.ndarray:
    return np.exp(np.random.default_rng(seed).normal(2.0, 1.5, size=count))


def trajectory(values: list[list[float]], **others: list[list[float]]) -> Trajectory:
    """A run whose losses are ``values``, (steps + 1, B)."""
    loss = torch.tensor(values, dtype=torch.float64)
    defects = others.get("defects")
    refused = others.get("refused")
    return Trajectory(
        loss,
        torch.ones_like(loss),
        torch.full_like(loss, math.nan) if defects is None else torch.tensor(defects).double(),
        torch.zeros_like(loss).bool() if refused is None else torch.tensor(refused).bool(),
        0.00125,
    )


def line(values: list[list[float]], **others: list[list[float]]) -> Line:
    return summarise([Result(BASELINES["gd"], trajectory(values, **others))])[0]


def test_the_mean_is_the_root_of_the_product() -> None:
    assert geometric_mean(np.array([1.0, 4.0, 16.0])).mean == pytest.approx(4.0, rel=1e-12)
    drawn = losses(17)
    by_hand = np.prod(drawn) ** (1 / 17)
    assert geometric_mean(drawn).mean == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_the_interval_contains_the_mean_and_lies_within_the_data(seed: int) -> None:
    drawn = losses(12, seed)
    result = geometric_mean(drawn)
    assert drawn.min() < result.low < result.mean < result.high < drawn.max()


def test_the_interval_is_that_of_the_normal_approximation_for_many_problems() -> None:
    drawn = losses(2000)
    logs = np.log(drawn)
    half = 1.96 * logs.std() / math.sqrt(len(logs))
    result = geometric_mean(drawn)
    assert math.log(result.low) == pytest.approx(logs.mean() - half, abs=0.1 * half)
    assert math.log(result.high) == pytest.approx(logs.mean() + half, abs=0.1 * half)


@pytest.mark.parametrize("count", [2, 12, 64])
def test_the_interval_is_scipys(count: int) -> None:
    drawn = losses(count)
    scipys = stats.bootstrap(
        (np.log(drawn),), np.mean, n_resamples=2000, method="percentile",
        vectorized=True, rng=np.random.default_rng(3),
    ).confidence_interval  # fmt: skip
    assert geometric_mean(drawn, seed=3)[1:] == pytest.approx(np.exp(scipys), rel=1e-12)


def test_the_interval_is_reproducible_and_follows_its_seed() -> None:
    drawn = losses(10)
    assert geometric_mean(drawn, seed=3) == geometric_mean(drawn, seed=3)
    assert geometric_mean(drawn, seed=3).low != geometric_mean(drawn, seed=4).low


def test_the_interval_shrinks_as_the_root_of_the_number_of_problems() -> None:
    drawn = losses(20)
    widths = []
    for times in (1, 9, 81):  # the same spread each time
        result = geometric_mean(np.tile(drawn, times))
        widths.append(math.log(result.high / result.low))
    assert widths[0] / widths[1] == pytest.approx(3, rel=0.15)
    assert widths[1] / widths[2] == pytest.approx(3, rel=0.15)


@pytest.mark.parametrize("bad", [math.inf, math.nan, -math.inf])
def test_one_non_finite_problem_makes_all_infinite(bad: float) -> None:
    assert geometric_mean(np.array([1.0, bad, 2.0])) == (math.inf, math.inf, math.inf)


def test_a_single_problem_and_equal_problems_have_an_interval_of_no_width() -> None:
    assert geometric_mean(np.array([2.5])) == pytest.approx((2.5, 2.5, 2.5))
    assert geometric_mean(np.array([2.5, 2.5])) == pytest.approx((2.5, 2.5, 2.5))


def test_a_loss_of_zero_counts_as_tiny() -> None:
    result = geometric_mean(np.array([0.0, 1.0]))
    assert result.mean == pytest.approx(1e-150, rel=1e-9)
    assert math.isfinite(result.high)


def test_bands_follow_the_geometric_mean_at_every_step() -> None:
    drawn = losses(60).reshape(4, 15)
    mean, low, high = log_mean_bands(drawn)
    assert mean.shape == low.shape == high.shape == (4,)
    for t in range(4):
        one = geometric_mean(drawn[t])
        assert mean[t] == pytest.approx(one.mean, rel=1e-12)
        width = math.log(one.high / one.low)
        assert math.log(low[t] / one.low) == pytest.approx(0, abs=0.15 * width)
        assert math.log(high[t] / one.high) == pytest.approx(0, abs=0.15 * width)


def test_bands_are_reproducible() -> None:
    drawn = losses(30).reshape(3, 10)
    first, second = log_mean_bands(drawn, seed=1), log_mean_bands(drawn, seed=1)
    np.testing.assert_array_equal(first, second)
    assert (log_mean_bands(drawn, seed=2)[1] != first[1]).any()


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_bands_have_a_gap_where_a_problem_is_not_finite(bad: float) -> None:
    drawn = losses(30).reshape(3, 10)
    whole = log_mean_bands(drawn)
    drawn[1, 4] = bad
    for broken, intact in zip(log_mean_bands(drawn), whole, strict=True):
        assert np.isnan(broken).tolist() == [False, True, False]
        np.testing.assert_array_equal(broken[[0, 2]], intact[[0, 2]])


def test_bands_of_a_single_problem_are_its_losses() -> None:
    drawn = losses(5)[:, None]
    for band in log_mean_bands(drawn):
        np.testing.assert_allclose(band, drawn[:, 0], rtol=1e-12)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (1, (1,)),
        (9, (9,)),
        (10, (10,)),
        (11, (10, 11)),
        (100, (10, 30, 50, 100)),
        (1000, (10, 30, 50, 100, 300, 1000)),
    ],
)
def test_reported_steps_end_with_the_last(steps: int, expected: tuple[int, ...]) -> None:
    assert reported_steps(steps) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (math.nan, "–"),
        (math.inf, "diverged"),
        (123456.0, "1.23e+05"),
        (0.012345, "0.0123"),
        (0.0, "0"),
    ],
)
def test_numbers_have_three_digits_or_a_word(value: float, text: str) -> None:
    assert number(value) == text


def test_a_line_sums_up_its_run() -> None:
    values = [[8.0, 2.0, 4.0]] * 11 + [[1.0, 2.0, 4.0]]
    defects = [[math.nan] * 3] * 10 + [[1e-8, 3e-8, 2e-8], [math.nan] * 3]
    refused = [[False] * 3] * 10 + [[True, False, True], [False] * 3]
    made = line(values, defects=defects, refused=refused)
    assert made.method == "gd"
    assert made.means == (
        geometric_mean(np.array([8.0, 2.0, 4.0])),
        geometric_mean(np.array([1.0, 2.0, 4.0])),
    )
    assert (made.worst, made.non_finite, made.rejected) == (4.0, 0, 2)
    assert made.median_invariance_error == pytest.approx(2e-8)
    row = dict(zip(headings(11), cells(made), strict=True))
    assert row["method"] == "gd"
    assert (row["step 10"], row["step 11"]) == ("4", "2")
    assert (row["worst problem"], row["not finite"], row["rejected"]) == ("4", "0", "2")
    assert (row["median invariance error"], row["ms a step"]) == ("2e-08", "1.25")
    low, high = row["95 % interval at the last"].strip("[]").split(", ")
    assert 1 <= float(low) < 2 < float(high) <= 4


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_line_with_a_non_finite_problem_has_diverged(bad: float) -> None:
    made = line([[1.0, 2.0]] * 10 + [[1.0, bad]])
    row = dict(zip(headings(10), cells(made), strict=True))
    assert row["step 10"] == "diverged"
    assert row["95 % interval at the last"] == "–"
    assert row["worst problem"] == "diverged"
    assert row["not finite"] == "1"
    assert row["median invariance error"] == "–"


def test_a_run_that_recovers_is_not_called_diverged_at_the_last() -> None:
    made = line([[1.0, 2.0]] * 10 + [[1.0, math.inf]] + [[1.0, 2.0]] * 5)
    row = dict(zip(headings(15), cells(made), strict=True))
    assert (row["step 10"], row["step 15"], row["not finite"]) == ("diverged", "1.41", "0")


def test_the_text_table_lines_up_its_columns() -> None:
    interval = GeometricMean(1.0, 0.5, 2.0)
    short = Line("gd", (interval,), 2.0, 0, math.nan, 0, 0.001)
    long = Line("a_long_method@0.1", (interval,), 123456.0, 0, 1e-9, 12, 0.1)
    text = as_text([short, long], steps=5).splitlines()
    assert len(text) == 3
    assert len({len(row) for row in text}) == 1  # the last column is right-aligned
    assert [row.split()[0] for row in text] == ["method", "gd", "a_long_method@0.1"]
