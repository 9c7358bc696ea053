"""What every update rule must hold on a batch of tasks."""

import math
from collections.abc import Callable
from typing import Any

import torch

from metaopt.evaluation.rollout import rollout
from metaopt.tasks import NetworkFamily

Make = Callable[[Any], torch.optim.Optimizer]


def assert_tasks_together_are_stepped_as_each_alone(
    family: NetworkFamily, make: Make, rtol: float, atol: float
) -> None:
    """Six steps of two tasks end where those of each end."""
    together, apart = family.sample([1, 5]), [family.sample([seed]) for seed in (1, 5)]
    for tasks in (together, *apart):
        rollout(tasks, make(tasks), 6)
    for joint, *singles in zip(
        together.parameters(), *(t.parameters() for t in apart), strict=True
    ):
        torch.testing.assert_close(joint, torch.cat(singles), rtol=rtol, atol=atol)


def assert_a_lost_task_stops_no_other(family: NetworkFamily, make: Make) -> None:
    """With one task of NaN the other one ends where it does without."""
    ends = []
    for lost in (False, True):
        tasks = family.sample([1, 2])
        if lost:
            with torch.no_grad():
                tasks.W2[1].fill_(math.nan)
        rollout(tasks, make(tasks), 4)
        ends.append([p[0].detach().clone() for p in tasks.parameters()])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
