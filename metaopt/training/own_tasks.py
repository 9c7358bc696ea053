"""Training on a user's own tasks: a ``Task`` or a ``TaskFamily`` that ``--task`` names."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, final

import torch

from metaopt.checks import check_whole
from metaopt.errors import UserError
from metaopt.tasks import Task, TaskFamily, TaskSampler, check_task, first_seeds
from metaopt.tasks.named_task import named_task, task_of
from metaopt.tasks.stacked import Copies, stacked
from metaopt.training.distributions import (
    TASK_DISTRIBUTIONS,
    Drawn,
    TaskDistribution,
    check_losses,
    draw_seeds,
    drawn_evenly_in_logarithms,
)

VALIDATED = 4  # tasks of a family


@final
@TASK_DISTRIBUTIONS.register("task")
@dataclass(frozen=True)
class OwnTasks(TaskDistribution):
    """Tasks of any module, from a class of a user's own.

    A batch holds ``batch_size`` copies of one task. Of a family each batch draws a task, and four
    are validated on.

    Attributes:
        task: "package.module:Name" of a ``metaopt.tasks.Task`` or ``TaskFamily``, which is built
            without arguments. It takes the place of --problems.
        eval_batches: how many batches of the validation split, and of the test split, count.
        shortest: with a number above 0, the steps of a batch's trajectories are drawn between it
            and --steps, evenly in their logarithm.
        announced: how often the rule is told how long the trajectory is, from 0 to 1.
    """

    chains: ClassVar[bool] = False
    task: str = ""
    eval_batches: int = 10
    shortest: int = 0
    announced: float = 1.0

    def __post_init__(self) -> None:
        check_whole("eval_batches", self.eval_batches)
        check_whole("shortest", self.shortest, 0)
        if not 0 <= self.announced <= 1:
            raise UserError(f"expected announced in [0, 1], got {self.announced}: 1 is always")

    @cached_property
    def source(self) -> Task | TaskFamily:
        """The object that ``task`` names."""
        return named_task(self.task)

    def check(self) -> None:
        """Check that a seed gives the same task twice. See :meth:`TaskDistribution.check`."""
        (seed,) = first_seeds("validation", 1)
        task = self.source
        if isinstance(task, TaskFamily):
            task = task_of(task, seed)
        check_losses(check_task(task, seed))
        stacked(task, [seed])  # refuses what cannot be copied

    def horizon(self, steps: int, generator: torch.Generator) -> tuple[int, bool]:
        """Draw the length of a trajectory, and whether the rule is told. See the base class."""
        if self.shortest:
            low = min(self.shortest, steps)
            steps = round(drawn_evenly_in_logarithms(generator, low, steps))
        told = self.announced == 1 or float(torch.rand((), generator=generator)) < self.announced
        return steps, told

    def most(self, batch_size: int) -> int:
        """Return ``batch_size``, as each task counts as one. See :meth:`TaskDistribution.most`."""
        return batch_size

    def draw(self, batch_size: int, generator: torch.Generator) -> Drawn:
        """Draw a task of a family, and seeds. See :meth:`TaskDistribution.draw`."""
        task = self.source
        if isinstance(task, TaskFamily):
            task = task_of(task, draw_seeds(1, generator)[0])
        return Drawn(Copies(task), draw_seeds(batch_size, generator))

    def validation(self, count: int) -> list[tuple[TaskSampler, int]]:
        """Return the task, or tasks of the family. See :meth:`TaskDistribution.validation`."""
        if isinstance(self.source, TaskFamily):
            tasks = [task_of(self.source, seed) for seed in first_seeds("validation", VALIDATED)]
            return [(Copies(task), count) for task in tasks]
        return [(Copies(self.source), count)]
