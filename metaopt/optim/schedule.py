"""Schedules: before which steps an optimizer teleports."""

from __future__ import annotations

from collections.abc import Callable, Collection

from metaopt.errors import UserError

Schedule = Callable[[int], bool] | Collection[int] | int | None
"""The steps before which an optimizer teleports, counted from 0.

A function is called with the number of a step and returns whether to teleport. A collection holds
the numbers of the steps. An integer N means every N steps: before steps N, 2N, and so on. None
means never."""


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
        UserError: for an integer below 1, or for negative steps.
    """
    if schedule is None:
        return frozenset[int]().__contains__
    if isinstance(schedule, int):
        if schedule < 1:
            raise UserError(
                f"expected every 1 or more steps as schedule, got {schedule}: None is never"
            )
        return Every(schedule)
    if callable(schedule):
        return schedule
    if any(step < 0 for step in schedule):
        raise UserError(
            f"expected steps of 0 or more in the schedule, got {list(schedule)}: "
            f"the first step is 0"
        )
    return frozenset(schedule).__contains__
