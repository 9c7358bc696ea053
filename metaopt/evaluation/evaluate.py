"""Evaluate several methods on the same tasks, from the same weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from metaopt.checks import check_whole
from metaopt.errors import UserError
from metaopt.evaluation.methods import Method
from metaopt.evaluation.progress import progress
from metaopt.evaluation.rollout import Trajectory, rollout
from metaopt.ranks import ALONE, CPU, Ranks
from metaopt.symmetry.nested import tensors_in
from metaopt.tasks import SingleTask, TaskBatch, TaskSampler, check_seeds
from metaopt.tasks.module_tasks import Singles


@dataclass(frozen=True)
class Result:
    """The run of one method on all tasks.

    Attributes:
        method: the method.
        trajectory: its losses and what else was recorded.
        held_out: of a task of any module, numbers at the last step by name, one for each task:
            "validation loss", "test loss", and the metrics.
        state_bytes: memory of the optimizer's state of one batch at the end; 0 if not measured.
    """

    method: Method
    trajectory: Trajectory
    held_out: Mapping[str, Sequence[float]] = field(default_factory=dict)
    state_bytes: int = 0

    @property
    def losses(self) -> NDArray[np.float64]:
        """The losses at each step, ``(steps + 1, B)`` for B tasks."""
        losses: NDArray[np.float64] = self.trajectory.losses.numpy()
        return losses


def evaluate(
    methods: Sequence[Method],
    family: TaskSampler,
    seeds: Iterable[int],
    steps: int,
    together: int = 0,
    ranks: Ranks = ALONE,
    device: torch.device = CPU,
) -> Iterator[Result]:
    """Run each method on fresh copies of the same test tasks.

    Args:
        methods: the methods, in order.
        family: what builds the tasks. Tasks of any module are stepped one by one.
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
    width = 1 if isinstance(family, Singles) else together or len(checked)
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
                tasks.total_steps = steps
                optimizer = method.optimizer(tasks)
                run = rollout(tasks, optimizer, steps, advance=advance)
                held_out = _held_out(family, tasks)
                packed.append(_pack(run, held_out, _bytes(optimizer)))
        count = len(_TENSORS) * (steps + 1) + len(held_out)
        vectors = ranks.gather(packed, [count * len(part) + 2 for part in parts])
        yield _joined(method, vectors, list(held_out), steps)


def _held_out(family: TaskSampler, tasks: TaskBatch) -> dict[str, torch.Tensor]:
    """The losses and metrics of the validation and the test split, where the tasks have them."""
    if not (isinstance(family, Singles) and isinstance(tasks, SingleTask)):
        return {}
    return {
        f"{split} {name}": values
        for split in ("validation", "test")
        for name, values in tasks.measure(split, family.eval_batches).items()
    }


def _bytes(optimizer: torch.optim.Optimizer) -> int:
    held = tensors_in(list(optimizer.state.values()))
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


_TENSORS = ("losses", "grad_norms", "invariance_errors", "rejected")


def _pack(run: Trajectory, held_out: Mapping[str, torch.Tensor], state: int) -> torch.Tensor:
    """Return all numbers of a run as one float64 vector."""
    tensors = [getattr(run, name).double().flatten() for name in _TENSORS]
    more = [values.to(tensors[0]) for values in held_out.values()]
    return torch.cat((*tensors, *more, tensors[0].new_tensor([run.seconds_per_step, state])))


def _joined(
    method: Method, packed: Sequence[torch.Tensor], names: Sequence[str], steps: int
) -> Result:
    """Return the result on all tasks; its time is that of all batches one after another."""
    rows = len(_TENSORS) * (steps + 1) + len(names)
    parts = torch.cat([vector[:-2].cpu().view(rows, -1) for vector in packed], dim=1)
    runs = parts[: rows - len(names)].view(len(_TENSORS), steps + 1, -1)
    losses, grad_norms, errors, rejected = runs
    seconds = sum(float(vector[-2]) for vector in packed)
    numbers = parts[rows - len(names) :].tolist()
    return Result(
        method,
        Trajectory(losses, grad_norms, errors, rejected.bool(), seconds),
        dict(zip(names, numbers, strict=True)),
        max(int(vector[-1]) for vector in packed),
    )
