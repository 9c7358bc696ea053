"""Families of problems by name, each unlike section 5.2's in one thing or a few."""

from __future__ import annotations

from metaopt.tasks.regression import RegressionFamily as Family

FAMILIES: dict[str, Family] = {
    "width_8": Family.square(8),
    "width_20": Family(),
    "width_32": Family.square(32),
    "width_40": Family.square(40),
    "width_64": Family.square(64),
    "width_100": Family.square(100),
    "wide_hidden": Family(hidden=40),
    "narrow_hidden": Family(hidden=10),
    "all_sizes_unlike": Family(samples=16, input=24, hidden=32, output=8),
    "few_samples": Family(samples=8),
    "many_samples": Family(samples=40),
    "slope_0.3": Family(slope=0.3),
    "normal": Family(distribution="normal"),
    "three_layers": Family(depth=3),
    "four_layers": Family(depth=4),
}
"""By name. Width 20, uniform data, slope 0.1 and two layers unless the name says otherwise; eq. 78
is not exact for "many_samples", and "narrow_hidden" cannot reach a loss of zero."""
