"""Checks of numbers in a config; each raises a :class:`UserError` of one line."""

from __future__ import annotations

import math

from metaopt.errors import UserError


def check_whole(name: str, value: object, low: int = 1, high: int | None = None) -> None:
    """Check that a field is a whole number in [low, high].

    Args:
        name: the name of the field.
        value: its value.
        low: the smallest value that is allowed.
        high: the largest value that is allowed; None for no bound.

    Raises:
        UserError: if it is not.
    """
    if not isinstance(value, int) or value < low or (high is not None and value > high):
        span = f"of {low} or more" if high is None else f"of {low} to {high}"
        raise UserError(f"expected {name} {span}, got {value}: give a whole number")


def check_positive(name: str, value: float, default: float) -> None:
    """Check that a field is positive and finite.

    Args:
        name: the name of the field.
        value: its value.
        default: the default, which the message names.

    Raises:
        UserError: if it is not.
    """
    if not 0 < value < math.inf:
        raise UserError(f"expected a positive {name}, got {value}: the default is {default}")


def check_not_negative(name: str, value: float) -> None:
    """Check that a field is finite and not negative; 0 turns what it sets off.

    Args:
        name: the name of the field.
        value: its value.

    Raises:
        UserError: if it is not.
    """
    if not 0 <= value < math.inf:
        raise UserError(f"expected {name} of 0 or more, got {value}: 0 turns it off")
