"""Families of problems by name, each unlike section 5.2's in one thing or a few."""

from __future__ import annotations

from metaopt.tasks.regression import RegressionFamily

FAMILIES: dict[str, RegressionFamily] = {
    "width_8": RegressionFamily.square(8),
    "width_20": RegressionFamily(),
    "width_32": RegressionFamily.square(32),
    "width_40": RegressionFamily.square(40),
    "width_64": RegressionFamily.square(64),
    "width_100": RegressionFamily.square(100),
    "wide_hidden": RegressionFamily(hidden=40),
    "narrow_hidden": RegressionFamily(hidden=10),
    "all_sizes_unlike": RegressionFamily(samples=16, input=24, hidden=32, output=8),
    "few_samples": RegressionFamily(samples=8),
    "many_samples": RegressionFamily(samples=40),
    "slope_0.3": RegressionFamily(slope=0.3),
    "normal": RegressionFamily(distribution="normal"),
    "three_layers": RegressionFamily(depth=3),
    "four_layers": RegressionFamily(depth=4),
}
"""By name. Width 20, uniform data, slope 0.1 and two layers unless the name says otherwise; eq. 78
is not exact for "many_samples", and "narrow_hidden" cannot reach a loss of zero."""
