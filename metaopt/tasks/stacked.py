"""Several copies of a task of any module, stacked into one batch of tasks.

The copies have the same module and differ in their seeds. ``torch.vmap`` runs one forward pass for
all.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from metaopt.errors import UserError, cut
from metaopt.randomness import same_randomness
from metaopt.roles import roles_of
from metaopt.symmetry.functional import FunctionalForm, evaluating
from metaopt.tasks.layers import LayerRecorder
from metaopt.tasks.module_tasks import LOSS, ModuleTasks, seed_of_step
from metaopt.tasks.seeds import generators
from metaopt.tasks.stacked_batch import StackedBatch
from metaopt.tasks.stream import calling, named
from metaopt.tasks.task import Task


@final
class StackedTasks(ModuleTasks):
    """Several copies of a task together: parameters and buffers stacked, one pass for all.

    Buffers that the forward pass changes in place, such as the statistics of batch norm, are kept
    for each copy. Dropout draws other masks for each copy; they depend on the seeds of the whole
    batch and on the step. Where ``torch.vmap`` cannot run the module, the copies run one by one,
    and a warning says why. Frozen parameters are stacked as buffers.

    Args:
        task: the task.
        seeds: one for each copy.

    Raises:
        UserError: for no seed or one out of range, for copies whose parameters differ in their
            names or shapes or are complex, or if the task raises an error.
    """

    def __init__(self, task: Task, seeds: Sequence[int]) -> None:
        super().__init__(task, seeds)
        networks = [self.fresh(seed) for seed in seeds]
        shell = _Numbers(self, networks[0])
        self._owned: dict[str, str] = {}  # names in the module, and names here
        self._frozen: dict[str, str] = {}
        self._state: dict[str, str] = {}
        tensors = [{**dict(n.named_parameters()), **dict(n.named_buffers())} for n in networks]
        for name, first in tensors[0].items():
            values = [own[name].detach() for own in tensors if name in own]
            if len(values) < len(tensors) or any(v.shape != first.shape for v in values):
                raise UserError(
                    f"expected copies of {named(task)} with the same parameters, got another shape "
                    f"of {cut(name)} for another seed: make a TaskFamily of the sizes"
                )
            key, value = f"network/{name.replace('.', '/')}", torch.stack(values)
            if first.requires_grad and first.is_complex():
                raise UserError(
                    f"expected copies of {named(task)} with real parameters, got {cut(name)} of "
                    f"dtype {first.dtype}: hold real and imaginary parts in a parameter each"
                )
            if first.requires_grad:
                self._owned[f"network.{name}"] = key
                self.register_parameter(key, nn.Parameter(value))
            else:
                kept = self._frozen if isinstance(first, nn.Parameter) else self._state
                kept[f"network.{name}"] = key
                self.register_buffer(key, value)
        # In a tuple, as the module is none of this one's.
        self._form = (FunctionalForm(shell, [*self._owned, *self._frozen, *self._state]),)
        known = roles_of(networks[0])
        self.roles = [known[name.removeprefix("network.")] for name in self._owned]
        self.recorder: LayerRecorder | None = None
        self._passes: dict[bool, bool] = {}  # whether vmap can run it without and with metrics
        self._stacked: dict[tuple[str, int], list[Any]] = {}
        self._recent: dict[int, StackedBatch] = {}

    @property
    def together(self) -> bool | None:
        """Whether the copies run in one pass; None before the first pass."""
        return self._passes.get(False)

    @property
    def shell(self) -> nn.Module:
        """The module that runs, whose parameters are those of one copy at a time."""
        return self._form[0].model

    def forward(self, step: int = 0) -> Tensor:
        """Return the losses on the training batches of a step, ``(B,)``.

        Args:
            step: the number of the step, from 0.
        """
        if step not in self._recent:
            while len(self._recent) >= self.kept_batches:
                del self._recent[min(self._recent)]
            self._recent[step] = StackedBatch.of([stream.at(step) for stream in self.streams])
        numbers = self._run(self._recent[step], seed_of_step(self.seeds, step), metrics=False)
        return numbers[LOSS]

    @torch.no_grad()
    def measure(self, split: str, count: int) -> dict[str, Tensor]:
        """See :meth:`ModuleTasks.measure`."""
        if (split, count) not in self._stacked:
            each = [self.of_split(seed, split, count) for seed in self.seeds]
            columns = zip(*each, strict=False)
            self._stacked[split, count] = [StackedBatch.of(list(column)) for column in columns]
        with evaluating(self._form[0].model), _plain_attention():
            found = [
                self._run(batch, seed_of_step(self.seeds, -1), metrics=True)
                for batch in self._stacked[split, count]
            ]
        return self.means(found)

    def changing(self) -> list[str]:
        """See :meth:`TaskBatch.changing`."""
        return list(self._state.values())

    def select(self, indices: Sequence[int]) -> StackedTasks:
        """See :meth:`TaskBatch.select`; copies of one seed share their batches."""
        chosen = super().select(indices)
        chosen.seeds = tuple(self.seeds[index] for index in indices)
        chosen.streams = [chosen.streams[index] for index in indices]
        chosen._stacked, chosen._recent = {}, {}
        return chosen

    def _run(self, batch: StackedBatch, seed: int, metrics: bool) -> dict[str, Tensor]:
        form = self._form[0]
        fixed = [getattr(self, key) for key in (*self._owned.values(), *self._frozen.values())]
        before = [getattr(self, key) for key in self._state.values()]
        state = [value.clone() for value in before]
        batch = batch.to(self.x.device)

        recorder = self.recorder if torch.is_grad_enabled() and not metrics else None
        names: list[str] = []

        def one(values: list[Tensor], leaves: list[Tensor]) -> tuple[dict[str, Tensor], Any]:
            with _calls_of(recorder) as calls:
                numbers: dict[str, Tensor] = form(values, batch.rebuilt(leaves), metrics)
            names[:] = [name for name, *_ in calls]
            return numbers, [call[1:] for call in calls]

        together = self._passes.get(metrics)
        if together is not False and not batch.uneven:
            try:
                with same_randomness(seed), sdpa_kernel(SDPBackend.MATH):
                    mapped = torch.vmap(one, randomness="different")
                    stacked, layers = mapped([*fixed, *state], batch.leaves)
                together = True
            except Exception as error:  # whatever vmap cannot do; a task's own error comes again
                if together:
                    raise
                self._say(error)
                state = [value.clone() for value in before]
                together = False
        elif batch.uneven and together is not False:
            self._say(batch.uneven)
            together = False
        self._passes[metrics] = bool(together)
        if not together:
            each = []
            for index in range(self.batch):
                with same_randomness(seed + index), sdpa_kernel(SDPBackend.MATH):
                    own = [value[index] for value in (*fixed, *state)]
                    each.append(one(own, batch.of_copy(index)))
            stacked = {
                name: torch.stack([numbers[name] for numbers, _ in each]) for name in each[0][0]
            }
        if recorder is not None and together:
            for name, (inputs, output) in zip(names, layers, strict=True):
                recorder.saw(name, inputs, [output])
        elif recorder is not None:
            for name, calls in zip(names, zip(*(own for _, own in each), strict=True), strict=True):
                inputs, outputs = zip(*calls, strict=True)
                recorder.saw(name, torch.stack(inputs), outputs)
        if form.model.training:
            with torch.no_grad():
                for value, changed in zip(before, state, strict=True):
                    value.copy_(changed)
        return stacked

    def _say(self, reason: object) -> None:
        cause = getattr(reason, "__cause__", None) or reason
        warnings.warn(
            f"{named(self.task)} runs copy by copy, as torch.vmap cannot run it: "
            f"{cut(' '.join(str(cause).split()), 150)}",
            stacklevel=4,
        )


@contextmanager
def _calls_of(recorder: LayerRecorder | None) -> Iterator[list[tuple[str, Tensor, Tensor]]]:
    if recorder is None:
        yield []
    else:
        with recorder.mapped() as calls:
            yield calls


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Keep torch's encoder layers from a fused form for evaluation, which vmap cannot run well."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _Numbers(nn.Module):
    """The loss of a network as a module of its own, whose call ``call_with`` can make."""

    def __init__(self, tasks: ModuleTasks, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._tasks = (tasks,)

    def forward(self, batch: Any, metrics: bool) -> dict[str, Tensor]:
        """Return the loss, and the metrics if they are asked for."""
        tasks, given = self._tasks[0], dict(self.network.named_buffers())
        if metrics:
            numbers = tasks.numbers(self.network, batch)
        else:
            with calling(tasks.task, LOSS):
                numbers = {LOSS: tasks.scalar(tasks.task.loss(self.network, batch))}
        with torch.no_grad():
            for name, now in self.network.named_buffers():
                before = given.get(name)
                if before is None or before.shape != now.shape:
                    raise UserError(
                        f"expected buffers of {named(tasks.task)} that keep their shapes, got "
                        f"another of {cut(name)}: register it with its shape"
                    )
                if before is not now:  # assigned anew, which the stacked buffer has to learn
                    before.copy_(now)
        return numbers


@final
@dataclass(frozen=True)
class Copies:
    """The batches of tasks that are copies of one task of any module, one copy a seed.

    Attributes:
        task: the task.
    """

    task: Task

    @property
    def coordinates(self) -> int:
        """The number of weights of one copy."""
        with calling(self.task, "model"), same_randomness(0):
            return sum(p.numel() for p in self.task.model(0).parameters() if p.requires_grad)

    def sample(self, seeds: Iterable[int]) -> StackedTasks:
        """Return one copy a seed, as one batch. See :func:`stacked`."""
        return stacked(self.task, seeds)


def stacked(task: Task, seeds: Iterable[int]) -> StackedTasks:
    """Return several copies of a task as one batch of tasks.

    Args:
        task: the task.
        seeds: one for each copy, from 0 to 2^63 - 1.

    Raises:
        UserError: see :class:`StackedTasks`.
    """
    checked = list(seeds)
    for _ in generators(checked):  # refuses none, and those out of range
        pass
    return StackedTasks(task, checked)
