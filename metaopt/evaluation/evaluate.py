"""Evaluate several methods on the same tasks, from the same weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from metaopt.checks import check_whole
from metaopt.errors import UserError
from metaopt.evaluation.methods import Method
from metaopt.evaluation.progress import progress
from metaopt.evaluation.rollout import Trajectory, rollout
from metaopt.ranks import ALONE, CPU, Ranks
from metaopt.tasks import RegressionFamily, check_seeds


@dataclass(frozen=True)
class Result:
    """The run of one method on all tasks.

    Attributes:
        method: the method.
        trajectory: its losses and what else was recorded.
    """

    method: Method
    trajectory: Trajectory

    @property
    def losses(self) -> NDArray[np.float64]:
        """The losses at each step, ``(steps + 1, B)`` for B tasks."""
        losses: NDArray[np.float64] = self.trajectory.losses.numpy()
        return losses


def evaluate(
    methods: Sequence[Method],
    family: RegressionFamily,
    seeds: Iterable[int],
    steps: int,
    together: int = 0,
    ranks: Ranks = ALONE,
    device: torch.device = CPU,
) -> Iterator[Result]:
    """Run each method on fresh copies of the same test tasks.

    Args:
        methods: the methods, in order.
        family: the task family that builds the tasks.
        seeds: seeds of test tasks. (What is tuned is tuned on validation tasks.)
        steps: optimization steps of each method.
        together: number of tasks that are stepped in one batch; 0 for all.
        ranks: the processes that share the batches; each gets all results.
        device: where the tasks are stepped; results are on the CPU.

    Yields:
        One result for each method.

    Raises:
        UserError: for seeds of other tasks, or fewer batches than processes.
    """
    checked = check_seeds(seeds, "test")
    check_whole("--together", together, 0)
    width = together or len(checked)
    parts = [checked[start : start + width] for start in range(0, len(checked), width)]
    if ranks.size > len(parts):
        raise UserError(
            f"expected {ranks.size} batches or more for {ranks.size} processes, got {len(parts)}: "
            f"add --together {max(1, len(checked) // ranks.size)}, or start fewer"
        )
    own = ranks.own(len(parts))
    for method in methods:
        with progress(method.name, steps * len(own), shown=ranks.first) as advance:
            packed = []
            for k in own:
                tasks = family.sample(parts[k]).to(device)
                run = rollout(tasks, method.optimizer(tasks), steps, advance=advance)
                packed.append(_pack(run))
        lengths = [len(_TENSORS) * (steps + 1) * len(part) + 1 for part in parts]
        yield Result(method, _join(ranks.gather(packed, lengths), steps))


_TENSORS = ("losses", "grad_norms", "invariance_errors", "rejected")


def _pack(run: Trajectory) -> torch.Tensor:
    """Return a whole trajectory as one float64 vector."""
    tensors = [getattr(run, name).double().flatten() for name in _TENSORS]
    return torch.cat((*tensors, tensors[0].new_tensor([run.seconds_per_step])))


def _join(packed: Sequence[torch.Tensor], steps: int) -> Trajectory:
    """Return the trajectory of all tasks; its time is that of all batches one after another."""
    parts = [vector[:-1].cpu().view(len(_TENSORS), steps + 1, -1) for vector in packed]
    losses, grad_norms, errors, rejected = torch.cat(parts, dim=2)
    seconds = sum(float(vector[-1]) for vector in packed)
    return Trajectory(losses, grad_norms, errors, rejected.bool(), seconds)
