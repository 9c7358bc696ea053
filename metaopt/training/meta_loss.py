"""What a window of losses is worth to the meta-optimizer: meta-losses, by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from torch import Tensor

from metaopt.errors import UserError
from metaopt.registry import Registry


class MetaLoss(ABC):
    """A scalar of a window's losses. A subclass is a frozen dataclass of its own fields."""

    @abstractmethod
    def __call__(self, losses: Tensor) -> Tensor:
        """The meta-loss of losses ``(K, B)`` after each of K steps, a scalar."""


META_LOSSES: Registry[type[MetaLoss]] = Registry("meta_loss")
"""Meta-losses by name."""


@dataclass(frozen=True)
class LogFields:
    """The floor of a log meta-loss.

    Attributes:
        log_floor: the floor in the log meta-loss; below it nothing is left to learn.
    """

    log_floor: float = 1e-12

    def __post_init__(self) -> None:
        if not self.log_floor >= 0:
            raise UserError(
                f"expected a log_floor of 0 or more, got {self.log_floor}: 1e-12 is below "
                "float32's noise"
            )


@META_LOSSES.register("log")
@final
@dataclass(frozen=True)
class LogMean(LogFields, MetaLoss):
    """mean log(L + floor) over all steps.

    Losses span fourteen orders of magnitude, and below the floor, which is float32 noise, nothing
    is left to learn.
    """

    def __call__(self, losses: Tensor) -> Tensor:
        return (losses + self.log_floor).log().mean()


@META_LOSSES.register("log_last")
@final
@dataclass(frozen=True)
class LogLast(LogFields, MetaLoss):
    """mean log(L + floor) of the last step alone: what a window leaves behind.

    Where losses count on the way, networks learn to be quick within a window and not over several.
    """

    def __call__(self, losses: Tensor) -> Tensor:
        return (losses[-1:] + self.log_floor).log().mean()


@META_LOSSES.register("log_tail")
@final
@dataclass(frozen=True)
class LogTail(LogFields, MetaLoss):
    """mean log(L + floor) over the last tenth of the steps, as minibatches make one step noisy."""

    def __call__(self, losses: Tensor) -> Tensor:
        return (losses[-max(1, len(losses) // 10) :] + self.log_floor).log().mean()


@META_LOSSES.register("sum")
@final
@dataclass(frozen=True)
class PaperSum(MetaLoss):
    """Algorithm 1: the sum of L over the window, averaged over problems."""

    def __call__(self, losses: Tensor) -> Tensor:
        return losses.sum(dim=0).mean()
