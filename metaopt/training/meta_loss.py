"""Meta-losses: scalars of the losses of a window, which meta-training lowers.

A window is a few steps of a learned optimizer on a batch of tasks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from torch import Tensor

from metaopt.checks import check_not_negative
from metaopt.registry import Registry


class MetaLoss(ABC):
    """A scalar function of a window's losses.

    A subclass is a frozen dataclass of its own fields.
    """

    @abstractmethod
    def __call__(self, losses: Tensor) -> Tensor:
        """Return the meta-loss of a window, a scalar.

        Args:
            losses: ``(K, B)``, the loss of each of B tasks after each of K steps.
        """


META_LOSSES: Registry[type[MetaLoss]] = Registry("meta_loss")
"""Meta-losses by name, the values of ``--meta_loss``."""


@dataclass(frozen=True)
class LogFields:
    """The field that all logarithmic meta-losses share.

    Attributes:
        log_floor: a small loss that is added before the logarithm is taken. A loss far below it is
            as good as zero: the trajectory ends there.
    """

    log_floor: float = 1e-12

    def __post_init__(self) -> None:
        check_not_negative("log_floor", self.log_floor)


@META_LOSSES.register("log")
@final
@dataclass(frozen=True)
class LogMean(LogFields, MetaLoss):
    """The mean of log(L + log_floor) over all steps and tasks.

    The losses of a trajectory span fourteen orders of magnitude, so the logarithm is what makes all
    of its steps count. Below the floor, which is about the rounding of float32, nothing is left to
    learn.
    """

    def __call__(self, losses: Tensor) -> Tensor:
        """Return the mean over all steps and tasks. See :meth:`MetaLoss.__call__`."""
        return (losses + self.log_floor).log().mean()


@META_LOSSES.register("log_last")
@final
@dataclass(frozen=True)
class LogLast(LogFields, MetaLoss):
    """The mean of log(L + log_floor) over tasks, after the last step of the window alone.

    Where earlier steps count too, networks learn to be quick within a window and not over several.
    """

    def __call__(self, losses: Tensor) -> Tensor:
        """Return the mean over tasks after the last step. See :meth:`MetaLoss.__call__`."""
        return (losses[-1:] + self.log_floor).log().mean()


@META_LOSSES.register("log_tail")
@final
@dataclass(frozen=True)
class LogTail(LogFields, MetaLoss):
    """The mean of log(L + log_floor) over tasks and over the last tenth of the window's steps.

    It suits minibatches, whose loss at a single step is noisy.
    """

    def __call__(self, losses: Tensor) -> Tensor:
        """Return the mean over tasks and the last tenth of the steps.

        See :meth:`MetaLoss.__call__`.
        """
        return (losses[-max(1, len(losses) // 10) :] + self.log_floor).log().mean()


@META_LOSSES.register("sum")
@final
@dataclass(frozen=True)
class PaperSum(MetaLoss):
    """The sum of L over the window's steps, averaged over tasks (algorithm 1)."""

    def __call__(self, losses: Tensor) -> Tensor:
        """Return the sum over steps, averaged over tasks. See :meth:`MetaLoss.__call__`."""
        return losses.sum(dim=0).mean()
