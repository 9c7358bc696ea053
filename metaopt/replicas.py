"""Copies of one model in several processes, which ``DistributedDataParallel`` keeps equal.

Each process computes on its own part of a batch, and DDP averages the gradients. A step that looks
at more than gradients, or a search that evaluates losses, would let the copies drift apart. So what
it looks at is gathered here from all processes, in their order: then each process computes the same
numbers, bit for bit.

:mod:`metaopt.ranks` is for the processes of this library's own meta-training, which share a job.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

LossFunction = Callable[[Sequence[Tensor]], Tensor]


@final
@dataclass(frozen=True)
class Replicas:
    """The processes that hold a copy of a model.

    Attributes:
        group: the process group of DDP; None if there is one copy alone.
    """

    group: dist.ProcessGroup | None = None

    @property
    def size(self) -> int:
        """How many copies there are."""
        return 1 if self.group is None else dist.get_world_size(self.group)

    def __bool__(self) -> bool:
        return self.size > 1

    def gather(self, values: Tensor) -> list[Tensor]:
        """Return the tensor of each process, in the order of the processes.

        Args:
            values: of the same shape and dtype in each process.
        """
        if not self:
            return [values]
        sent = values.detach().to(self._device(values)).contiguous()
        sent = sent.to(torch.uint8) if values.dtype == torch.bool else sent
        received = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(received, sent, group=self.group)
        return [own.to(values.device, values.dtype) for own in received]

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the processes, the same bits in each."""
        return values if not self else torch.stack(self.gather(values)).sum(dim=0) / self.size

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over the processes, the same bits in each."""
        return values if not self else torch.stack(self.gather(values)).sum(dim=0)

    def largest(self, values: Tensor) -> Tensor:
        """Return the largest value over the processes, entry by entry; NaN if one is NaN."""
        return values if not self else torch.stack(self.gather(values)).amax(dim=0)

    def rows(self, values: Tensor) -> Tensor:
        """Return the rows of all processes, one process after the other.

        Args:
            values: ``(rows, ...)``; the number of rows may differ between processes.
        """
        if not self:
            return values
        counts = [int(n) for n in self.gather(torch.tensor([len(values)], device=values.device))]
        padded = values.new_zeros((max(counts), *values.shape[1:]))
        padded[: len(values)] = values.detach()
        parts = self.gather(padded)
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])

    def loss(self, loss: LossFunction) -> LossFunction:
        """Return the mean of a loss over the processes, as DDP's gradients have it.

        It is differentiable any number of times. Each process has to evaluate and differentiate it
        the same number of times, at the same parameters.

        Args:
            loss: the loss on this process's part of the batch, as a function of parameters.
        """
        if not self:
            return loss

        def mean(values: Sequence[Tensor]) -> Tensor:
            own = loss([_Shared.apply(value, self) for value in values])  # type: ignore[no-untyped-call]
            together: Tensor = _Summed.apply(own, self)  # type: ignore[no-untyped-call]
            return together / self.size

        return mean

    def _device(self, values: Tensor) -> torch.device:
        """The device of what is sent: NCCL, for example, sends from GPUs alone."""
        if values.device.type != "cpu" or "gloo" in dist.get_backend(self.group):
            return values.device
        return torch.device(torch.accelerator.current_accelerator() or "cpu")


ALONE = Replicas()
"""One copy of a model, in one process."""


class _Shared(torch.autograd.Function):
    """The same values in each process; its gradients are summed over the processes."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, replicas: Replicas) -> Tensor:
        ctx.replicas = replicas
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Summed.apply(gradients[0], ctx.replicas), None  # type: ignore[no-untyped-call]


class _Summed(torch.autograd.Function):
    """The sum over the processes; each gets the gradient of its own term."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, replicas: Replicas) -> Tensor:
        ctx.replicas = replicas
        return replicas.sum(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Shared.apply(gradients[0], ctx.replicas), None  # type: ignore[no-untyped-call]


def replicas_of(model: nn.Module) -> Replicas:
    """Return the processes that hold a copy of a model which DDP keeps equal.

    Args:
        model: the module that DDP was given, or one that contains it or is contained in it; or the
            DDP module itself. DDP tells the module nothing, so all living DDP modules are looked
            at, which takes some milliseconds; in a job of one process, nothing is looked at.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return ALONE
    parameters = {id(parameter) for parameter in model.parameters()}
    kinds = _with_subclasses(DistributedDataParallel)
    for found in gc.get_referrers(*kinds):  # an object refers to its class
        if type(found) in kinds and any(id(p) in parameters for p in found.module.parameters()):
            return Replicas(found.process_group)
    return ALONE


def _with_subclasses(kind: type) -> list[type]:
    subclasses: list[type] = kind.__subclasses__()
    return [kind, *(own for sub in subclasses for own in _with_subclasses(sub))]


def replicas_now() -> Replicas:
    """Return the processes whose DDP modules are in their forward pass at this moment."""
    active = DistributedDataParallel._active_ddp_module
    return ALONE if active is None else Replicas(active.process_group)
