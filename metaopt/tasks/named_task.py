"""A user's own task or family of tasks by the name of its class, as command lines take it."""

from __future__ import annotations

from metaopt.errors import UserError, shown
from metaopt.extensions import load_named
from metaopt.tasks.stream import calling
from metaopt.tasks.task import Task, TaskFamily


def named_task(text: str) -> Task | TaskFamily:
    """Return the task or family that a user names.

    Args:
        text: "package.module:Name".

    Raises:
        UserError: if it cannot be imported or built, or is neither.
    """
    found = load_named(text)
    if not isinstance(found, Task | TaskFamily):
        raise UserError(
            f"expected a Task or a TaskFamily of metaopt.tasks under {shown(text)}, got "
            f"{shown(found)}: derive the class from one of them"
        )
    return found


def task_of(family: TaskFamily, seed: int) -> Task:
    """Return the task of a seed.

    Args:
        family: what draws it.
        seed: from 0 to 2^63 - 1.

    Raises:
        UserError: if it is no task, or if the family raises an error.
    """
    with calling(family, "sample"):
        task = family.sample(seed)
    if not isinstance(task, Task):
        raise UserError(
            f"expected {type(family).__name__}.sample to return a metaopt.tasks.Task, got "
            f"{shown(task)}: return one"
        )
    return task
