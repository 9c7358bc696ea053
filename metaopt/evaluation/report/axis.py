"""Where the ticks of the axes are, and their labels."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from metaopt.evaluation.table import number

LEAST_DECADES = 0.8  # of an axis: so many hold two of 1, 2, 5, 10, ...
MOST_TICKS = 7
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Tick(NamedTuple):
    """A tick on an axis.

    Attributes:
        at: its position on the axis.
        label: its text.
    """

    at: float
    label: str


def log_limits(values: Iterable[float]) -> tuple[float, float]:
    """Return (bottom, top) of a log axis in powers of ten, with room around the values.

    Args:
        values: those that are not finite are left out.
    """
    logs = [math.log10(value) for value in values if math.isfinite(value)]
    low, high = (min(logs), max(logs)) if logs else (0.0, 0.0)
    room = max(0.03 * (high - low), (LEAST_DECADES - (high - low)) / 2)
    return low - room, high + room


def log_ticks(bottom: float, top: float) -> list[Tick]:
    """Return the ticks of a log axis: at powers of ten, or at 1, 2 and 5 times those if few fit.

    There are at most ``MOST_TICKS`` powers of ten.

    Args:
        bottom: the lower end, as a power of ten.
        top: the upper end, as a power of ten.

    Example:
        >>> [tick.label for tick in log_ticks(-2.5, 1.5)]
        ['10⁻²', '10⁻¹', '10⁰', '10¹']
        >>> [tick.label for tick in log_ticks(0.1, 0.9)]
        ['2', '5']
    """
    decades = range(math.ceil(bottom), math.floor(top) + 1)
    if len(decades) > 2:
        stride = math.ceil(len(decades) / MOST_TICKS)
        return [Tick(k, f"10{str(k).translate(_RAISED)}") for k in decades if k % stride == 0]
    finer = [
        k + math.log10(digit)
        for k in range(math.floor(bottom), math.ceil(top) + 1)
        for digit in (1, 2, 5)
    ]
    return [Tick(at, number(10**at)) for at in finer if bottom <= at <= top]


def step_ticks(last: int) -> list[Tick]:
    """Return ticks at multiples of 1, 2 or 5 times a power of ten, at most ``MOST_TICKS``.

    Args:
        last: the last step.

    Example:
        >>> [tick.label for tick in step_ticks(100)]
        ['0', '20', '40', '60', '80', '100']
    """
    power = 1
    while True:
        for stride in (power, 2 * power, 5 * power):
            if last // stride < MOST_TICKS:
                return [Tick(step, str(step)) for step in range(0, last + 1, stride)]
        power *= 10
