"""Schedules: before which steps an optimizer teleports."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

from metaopt.errors import UserError, shown

Schedule = Callable[[int], bool] | Iterable[int] | int | None
"""The steps before which an optimizer teleports, counted from 0.

A function is called with the number of a step and returns whether to teleport. A collection holds
the numbers of the steps: a list, a set, a range, an array, a tensor, or an iterator, which is read
at once. An integer N means every N steps: before steps N, 2N, and so on. None means never. Whole
numbers of any type are taken, 3.0 too."""

LONGEST = 1_000_000
"""The most steps that are read from an iterator, which may have no end."""


class Every:
    """A schedule of every N steps: before steps N, 2N, ..., but not before step 0."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, step: int) -> bool:
        """Return whether to teleport before a step."""
        return step > 0 and step % self.steps == 0


def as_predicate(schedule: Schedule) -> Callable[[int], bool]:
    """Return a schedule of any form as a function of the number of the step.

    Args:
        schedule: see ``Schedule``.

    Returns:
        A function that says whether to teleport before a step.

    Raises:
        UserError: for an integer below 1, for steps that are negative or no whole numbers, for an
            iterator without end, and for anything else.
    """
    given: Any = schedule
    if given is None:
        return frozenset[int]().__contains__
    if hasattr(given, "tolist"):  # an array, a tensor, or a number of their kind
        given = given.tolist()
    if isinstance(given, str | bytes | Mapping | bool):
        raise _refused(given)
    if isinstance(given, range):
        if given and min(given[0], given[-1]) < 0:
            raise _refused(min(given[0], given[-1]), given)
        return given.__contains__
    if callable(given):
        return _checked(given)
    if not isinstance(given, Iterable):
        every = _whole(given)
        if every is None:
            raise _refused(given)
        if every < 1:
            raise UserError(
                f"expected every 1 or more steps as schedule, got {shown(given)}: None is never"
            )
        return Every(every)
    entries = list(islice(given, LONGEST + 1))
    if len(entries) > LONGEST:
        raise UserError(
            f"expected a schedule of at most {LONGEST:,} steps, got more: give a function of the "
            f"step, a range, or a number N for every N steps"
        )
    steps = [_whole(entry) for entry in entries]
    for step, entry in zip(steps, entries, strict=True):
        if step is None or step < 0:
            raise _refused(entry, entries)
    return frozenset(step for step in steps if step is not None).__contains__


def _whole(value: Any) -> int | None:
    """Return a whole number of any type as an int; None for anything else."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, bool | str):
        return None
    try:
        whole = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return whole if whole == value else None


def _checked(schedule: Callable[[int], bool]) -> Callable[[int], bool]:
    try:
        inspect.signature(schedule).bind(0)
    except TypeError:
        raise UserError(
            f"expected a schedule that is called with the number of the step, got "
            f"{shown(schedule)}: give a function of one argument"
        ) from None
    except ValueError:  # a built-in function that does not say what it takes
        pass
    return schedule


def _refused(step: object, steps: object = None) -> UserError:
    got = shown(step) if steps is None else f"{shown(steps)}, with {shown(step)}"
    return UserError(
        f"expected steps of 0 or more in the schedule, got {got}: give whole numbers, of which the "
        f"first step is 0, a function of the step, or N for every N steps"
    )
