"""Checks of the values of a config; each raises a :class:`UserError` of one line."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from numbers import Integral, Real

from metaopt.errors import UserError, listed, shown, unknown


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
    most = math.inf if high is None else high
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= most:
        span = f"of {low} or more" if high is None else f"of {low} to {high}"
        raise UserError(f"expected {name} {span}, got {shown(value)}: give a whole number")


def check_choice(what: str, value: object, known: Collection[str]) -> None:
    """Check that a value is one of the known names.

    Args:
        what: what the name is of, with its article, such as "a loss".
        value: the value to check.
        known: the names that are allowed.

    Raises:
        UserError: if it is not.
    """
    if value not in known:
        raise UserError(unknown(what, value, known))


def check_names(what: str, names: Sequence[str], known: Collection[str]) -> None:
    """Check that a list of names has at least one, and only known ones.

    Args:
        what: what the names are of, for the message, such as "methods".
        names: the names to check.
        known: the names that are allowed.

    Raises:
        UserError: if there is no name, or an unknown one.
    """
    for name in names:
        check_choice(what, name, known)
    if not names:
        raise UserError(f"expected {what} of {listed(known)}, got none: name at least one")


def check_positive(name: str, value: float, default: float) -> None:
    """Check that a field is positive and finite.

    Args:
        name: the name of the field.
        value: its value.
        default: the default, which the message names.

    Raises:
        UserError: if it is not.
    """
    if not isinstance(value, Real) or not 0 < value < math.inf:
        raise UserError(f"expected a positive {name}, got {shown(value)}: the default is {default}")


def check_not_negative(name: str, value: float) -> None:
    """Check that a field is finite and not negative; 0 turns what it sets off.

    Args:
        name: the name of the field.
        value: its value.

    Raises:
        UserError: if it is not.
    """
    if not isinstance(value, Real) or not 0 <= value < math.inf:
        raise UserError(f"expected {name} of 0 or more, got {shown(value)}: 0 turns it off")
