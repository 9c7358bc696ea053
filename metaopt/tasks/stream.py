"""The batches of a task step by step, and errors of a user's task as one line."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

from metaopt.errors import UserError, cut
from metaopt.tasks.task import Task


def named(task: object) -> str:
    """Return the name of a task's class."""
    return cut(type(task).__name__, 60)


@contextmanager
def calling(task: object, what: str) -> Iterator[None]:
    """Turn what a user's code raises inside this context into a :class:`UserError` of one line.

    Args:
        task: the task or family whose code is called.
        what: the method that is called.

    Raises:
        UserError: naming the error, and the line of code that raised it.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except (Exception, SystemExit) as error:  # whatever the code of others raises
        last = traceback.extract_tb(error.__traceback__)[-1]
        reason = cut(" ".join(f"{type(error).__name__}: {error}".split()), 120)
        place = f"{last.filename.rpartition('/')[2]}:{last.lineno}"
        raise UserError(
            f"expected {named(task)}.{what} to run, got {reason} ({place}): mend it"
        ) from error


@final
class BatchStream:
    """The batches of one task and seed by the number of the step, of which it holds the last.

    Batches that end begin again. A step before the last one starts from the first batch. A copy
    holds no batch, and makes its own from the seed.

    Args:
        task: what gives the batches.
        seed: their seed.
        split: one of ``metaopt.tasks.task.SPLITS``.
    """

    def __init__(self, task: Task, seed: int, split: str) -> None:
        self.task, self.seed, self.split = task, seed, split
        self._iterator: Iterator[Any] | None = None
        self._step, self._batch = -1, None

    def at(self, step: int) -> Any:
        """Return the batch of a step, from 0.

        Args:
            step: its number.

        Raises:
            UserError: if there is no batch at all, or if the task raises an error.
        """
        if step < self._step:
            self._iterator, self._step = None, -1
        while self._step < step:
            self._batch = self._next()
            self._step += 1
        return self._batch

    def _next(self) -> Any:
        with calling(self.task, "batches"):
            for _ in range(2):
                if self._iterator is None:
                    self._iterator = iter(self.task.batches(self.seed, self.split))
                for batch in self._iterator:
                    return batch
                self._iterator = None
        raise UserError(
            f"expected {named(self.task)}.batches({self.seed}, {self.split!r}) to give a batch, "
            "got none: give at least one"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> BatchStream:
        return BatchStream(self.task, self.seed, self.split)

    def __reduce__(self) -> tuple[Any, ...]:
        return BatchStream, (self.task, self.seed, self.split)
