"""When to teleport."""

from __future__ import annotations

from collections.abc import Callable, Collection

from metaopt.errors import UserError

Schedule = Callable[[int], bool] | Collection[int] | int | None
"""When to teleport: a function of the number of steps taken, those numbers, every N steps (before
steps N, 2N, ...), or never."""


class Every:
    """Whether a step is N, 2N, ..."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, step: int) -> bool:
        return step > 0 and step % self.steps == 0


def as_predicate(schedule: Schedule) -> Callable[[int], bool]:
    """Whether to teleport before a step, from the number of steps taken.

    Raises:
        UserError: for a schedule of no or of negative steps.
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
