"""Checks of numbers in a config; each raises a :class:`UserError` of one line."""

from __future__ import annotations

import math

from metaopt.errors import UserError


def check_whole(name: str, value: object, low: int = 1, high: int | None = None) -> None:
    """Check that a field is a whole number in [low, high].

    Raises:
        UserError: if it is not.
    """
    if not isinstance(value, int) or value < low or (high is not None and value > high):
        span = f"of {low} or more" if high is None else f"of {low} to {high}"
        raise UserError(f"expected {name} {span}, got {value}: give a whole number")


def check_positive(name: str, value: float, default: float) -> None:
    """Check that a field is positive and finite.

    Raises:
        UserError: if it is not; the message names the default.
    """
    if not 0 < value < math.inf:
        raise UserError(f"expected a positive {name}, got {value}: the default is {default}")


def check_not_negative(name: str, value: float) -> None:
    """Check that a field is finite and 0, which turns it off, or more.

    Raises:
        UserError: if it is not.
    """
    if not 0 <= value < math.inf:
        raise UserError(f"expected {name} of 0 or more, got {value}: 0 turns it off")
