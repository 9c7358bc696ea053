"""Tasks of any module as batches of tasks: what they share, and one task by itself."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from metaopt.checks import check_whole
from metaopt.errors import UserError, cut, shown
from metaopt.randomness import same_randomness
from metaopt.symmetry.chain import LayerChain
from metaopt.symmetry.functional import evaluating
from metaopt.symmetry.nested import tensors_in
from metaopt.tasks.batch import TaskBatch
from metaopt.tasks.stacked_batch import moved
from metaopt.tasks.stream import BatchStream, calling, named
from metaopt.tasks.task import Task

LOSS = "loss"


class ModuleTasks(TaskBatch):
    """A batch of tasks whose networks are modules of a user's own.

    Args:
        task: the task.
        seeds: one for each copy.

    Attributes:
        task: the task.
        seeds: one for each copy.
    """

    def __init__(self, task: Task, seeds: Sequence[int]) -> None:
        super().__init__()
        self.task, self.seeds = task, tuple(seeds)
        self.streams = [BatchStream(task, seed, "train") for seed in self.seeds]
        self.register_buffer("x", torch.zeros(len(self.seeds), 1, 1))  # no chain, so no input
        self.chain = LayerChain((), (), batch_dims=1)

    def measure(self, split: str, count: int) -> dict[str, Tensor]:
        """Return the mean loss and metrics on the first batches of a split, without gradients.

        The modules are in evaluation mode.

        Args:
            split: one of ``metaopt.tasks.task.SPLITS``.
            count: how many batches; all of them where there are fewer.

        Returns:
            "loss" and each metric by name, ``(B,)`` each.
        """
        raise NotImplementedError

    def of_split(self, seed: int, split: str, count: int) -> list[Any]:
        """Return the first batches of a split, at least one.

        Args:
            seed: of the task.
            split: one of ``metaopt.tasks.task.SPLITS``.
            count: how many, if there are as many.

        Raises:
            UserError: if there is none, or if the task raises an error.
        """
        with calling(self.task, "batches"):
            batches = list(islice(iter(self.task.batches(seed, split)), count))
        if not batches:
            raise UserError(
                f"expected {named(self.task)}.batches({seed}, {split!r}) to give a batch, got "
                "none: give at least one"
            )
        return batches

    def means(self, found: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the means over batches of the loss and of each metric, in float64.

        Args:
            found: what :meth:`numbers` gave for each batch.

        Raises:
            UserError: if batches have other metrics.
        """
        for own in found:
            if own.keys() != found[0].keys():
                raise UserError(
                    f"expected {named(self.task)}.metrics to give the same names for each batch, "
                    f"got {sorted(found[0])} and {sorted(own)}: give all of them each time"
                )
        return {name: mean_of([own[name] for own in found]) for name in found[0]}

    def fresh(self, seed: int) -> nn.Module:
        """Return the module of a seed at its initial weights, in training mode.

        Args:
            seed: of the task.

        Raises:
            UserError: if it is no module with trainable parameters, or if the task raises an error.
        """
        with calling(self.task, "model"), same_randomness(seed):
            network = self.task.model(seed)
        if not isinstance(network, nn.Module):
            raise UserError(
                f"expected {named(self.task)}.model to return an nn.Module, got {shown(network)}: "
                "return the module"
            )
        if not any(parameter.requires_grad for parameter in network.parameters()):
            raise UserError(
                f"expected {named(self.task)}.model to return a module with trainable parameters, "
                "got none: return a module that can be trained"
            )
        tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        if lazy := [name for name, tensor in tensors.items() if is_lazy(tensor)]:
            raise UserError(
                f"expected {named(self.task)}.model to return a module whose sizes are known, got "
                f"{cut(lazy[0])}, which is not initialized yet: run an input through it first"
            )
        return network.train()

    def scalar(self, loss: object) -> Tensor:
        """Return a loss of the task, checked to be a scalar.

        Args:
            loss: what the task returned.

        Raises:
            UserError: if it is no scalar tensor.
        """
        if not isinstance(loss, Tensor) or loss.dim() != 0 or not loss.is_floating_point():
            got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise UserError(
                f"expected {named(self.task)}.loss to return a scalar tensor, got {got}: return "
                "the mean over the batch, say"
            )
        return loss

    def numbers(self, network: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Return the loss and the metrics of a batch by name.

        Args:
            network: at any weights.
            batch: of the task.
        """
        with calling(self.task, LOSS):
            loss = self.scalar(self.task.loss(network, batch))
        with calling(self.task, "metrics"):
            metrics = self.task.metrics(network, batch)
            found = {name: torch.as_tensor(value) for name, value in metrics.items()}
        for name, value in found.items():
            if name == LOSS or value.numel() != 1:
                got = "one with the name loss" if name == LOSS else f"{tuple(value.shape)}"
                raise UserError(
                    f"expected {named(self.task)}.metrics to give scalars by names of their own, "
                    f"got {got} of {cut(str(name), 40)!r}: take a mean, or name it otherwise"
                )
        return {LOSS: loss, **{name: value.reshape(()) for name, value in found.items()}}


@final
class SingleTask(ModuleTasks):
    """One task by itself, with an ordinary module that any optimizer can step.

    Args:
        task: the task.
        seed: of its initial weights and data.

    Attributes:
        network: the module, in training mode.
    """

    def __init__(self, task: Task, seed: int) -> None:
        super().__init__(task, [seed])
        self.network = self.fresh(seed)

    def forward(self, step: int = 0) -> Tensor:
        """Return the loss on the training batch of a step, ``(1,)``.

        Args:
            step: the number of the step, from 0. Random choices of the module depend on it and on
                the seed alone.
        """
        batch = moved(self.streams[0].at(step), self.x.device)
        with calling(self.task, LOSS), same_randomness(seed_of_step(self.seeds, step)):
            return self.scalar(self.task.loss(self.network, batch)).reshape(1)

    def gradient_norms(self) -> Tensor:
        """See :meth:`TaskBatch.gradient_norms`."""
        squares = [
            p.grad.double().abs().square().sum()
            for p in self.network.parameters()
            if p.grad is not None
        ]
        return torch.stack(squares).sum(dim=0).sqrt().reshape(1)

    @torch.no_grad()
    def measure(self, split: str, count: int) -> dict[str, Tensor]:
        """See :meth:`ModuleTasks.measure`."""
        batches = self.of_split(self.seeds[0], split, count)
        with evaluating(self.network), same_randomness(seed_of_step(self.seeds, -1)):
            found = [self.numbers(self.network, moved(b, self.x.device)) for b in batches]
        return {name: mean.reshape(1) for name, mean in self.means(found).items()}


@final
@dataclass(frozen=True)
class Singles:
    """The batches of tasks that are one task of any module by itself.

    Attributes:
        task: the task.
        name: what the results call it.
        eval_batches: how many batches of the validation split, and of the test split, count.
    """

    task: Task
    name: str
    eval_batches: int = 10

    def __post_init__(self) -> None:
        check_whole("eval_batches", self.eval_batches)

    @property
    def coordinates(self) -> int:
        """The number of trainable weights."""
        network = SingleTask(self.task, 0).network
        return sum(p.numel() for p in network.parameters() if p.requires_grad)

    def sample(self, seeds: Iterable[int]) -> SingleTask:
        """Return the task of the only seed.

        Args:
            seeds: one, from 0 to 2^63 - 1.
        """
        (seed,) = seeds
        return SingleTask(self.task, seed)


def check_task(task: object, seed: int) -> float:
    """Check that an object is a task, and that a seed gives the same model and batch twice.

    Args:
        task: what a user gave.
        seed: from 0 to 2^63 - 1.

    Returns:
        The loss on the first batch at the initial weights.

    Raises:
        UserError: naming what differs, or what the task cannot do.
    """
    if not isinstance(task, Task):
        raise UserError(
            f"expected a metaopt.tasks.Task, got {shown(task)}: derive the class from Task"
        )
    first, second = SingleTask(task, seed), SingleTask(task, seed)
    names = [name for name, _ in first.network.named_parameters()]
    values = zip(first.network.parameters(), second.network.parameters(), strict=True)
    for name, (own, other) in zip(names, values, strict=True):
        if not torch.equal(own, other):
            raise UserError(
                f"expected {named(task)}.model to give the same weights for one seed, got others "
                f"of {cut(name)}: seed it, as by torch.manual_seed(seed)"
            )
    batches = [tensors_in(each.streams[0].at(0)) for each in (first, second)]
    same = len(batches[0]) == len(batches[1]) and all(
        torch.equal(a, b) for a, b in zip(*batches, strict=True)
    )
    if not same:
        raise UserError(
            f"expected {named(task)}.batches to give the same batches for one seed, got others: "
            "draw them from a generator with that seed"
        )
    before = [tensor.clone() for tensor in batches[0]]
    loss = first(0)
    if not all(torch.equal(a, b) for a, b in zip(before, batches[0], strict=True)):
        raise UserError(
            f"expected {named(task)}.loss to leave its batch as it is, which is used again, got "
            "one that writes into a tensor of it: write into a clone"
        )
    if not loss.requires_grad:
        raise UserError(
            f"expected {named(task)}.loss to depend on the weights, got one without a gradient: "
            "compute it by torch's operations, and detach nothing"
        )
    if not bool(loss.isfinite().all()):
        raise UserError(
            f"expected {named(task)}.loss to be finite at the initial weights, got "
            f"{float(loss.detach())}: mend the task"
        )
    first.measure("validation", 1)
    return float(loss.detach())


def seed_of_step(seeds: Sequence[int], step: int) -> int:
    """Return a seed of the random choices in a step of some copies of a task.

    Args:
        seeds: of the copies.
        step: its number.
    """
    digest = hashlib.sha256(f"{list(seeds)}/{step}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def mean_of(values: Sequence[Tensor]) -> Tensor:
    """Return the mean of some tensors, in float64."""
    return torch.stack([value.double() for value in values]).mean(dim=0)
