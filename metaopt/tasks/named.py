"""Named families of regressions, each of which differs from that of section 5.2 in a few sizes."""

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
"""Families by name. "width_20" is that of section 5.2: all sizes are 20, the data are uniform, the
slope is 0.1, and there are two layers; each other name says what is different. The action of eq. 78
is not exact for "many_samples". No network of "narrow_hidden" reaches a loss of zero."""
