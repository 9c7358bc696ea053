"""Tasks of a user's own: any module, any data, any loss; and families that draw such tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

SPLITS = ("train", "validation", "test")
"""The parts of a task's data: to step on, to choose by, and to report."""


class Task(ABC):
    """What an optimizer is trained or judged on: a module, batches of data, and a loss.

    A seed chooses the initial weights and the data or their order. The same seed gives the same
    model and batches. Subclasses that ``train_meta.py --task`` or ``eval_meta.py --task`` name are
    built without arguments.

    Example:
        >>> class Lines(Task):
        ...     def model(self, seed):
        ...         torch.manual_seed(seed)
        ...         return nn.Linear(3, 1)
        ...
        ...     def batches(self, seed, split):
        ...         generator = torch.Generator().manual_seed(seed)
        ...         while True:
        ...             x = torch.randn(16, 3, generator=generator)
        ...             yield x, x.sum(dim=1, keepdim=True)
        ...
        ...     def loss(self, model, batch):
        ...         x, y = batch
        ...         return (model(x) - y).square().mean()
    """

    @abstractmethod
    def model(self, seed: int) -> nn.Module:
        """Return a fresh module with the initial weights of a seed.

        It may call ``torch.manual_seed(seed)``: what calls it keeps the global generator.

        Args:
            seed: from 0 to 2^63 - 1.
        """

    @abstractmethod
    def batches(self, seed: int, split: str) -> Iterable[Any]:
        """Return the batches of a seed, in order.

        They may be endless. If they end, an optimizer that needs more starts them again.

        Args:
            seed: from 0 to 2^63 - 1.
            split: one of ``SPLITS``.

        Returns:
            An iterable of batches. A batch is whatever :meth:`loss` takes: a tensor, or tuples,
            lists and dictionaries of tensors.
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the loss of a batch, a scalar.

        Args:
            model: what :meth:`model` returned, at any weights.
            batch: one of :meth:`batches`.
        """

    def metrics(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Return further numbers of a batch by name, such as the accuracy; none by default.

        Args:
            model: what :meth:`model` returned, at any weights.
            batch: one of :meth:`batches`.
        """
        return {}


class TaskFamily(ABC):
    """A distribution of tasks, which may be of different modules.

    Subclasses that ``train_meta.py --task`` names are built without arguments.
    """

    @abstractmethod
    def sample(self, seed: int) -> Task:
        """Return the task of a seed; the same seed gives the same task.

        Args:
            seed: from 0 to 2^63 - 1.
        """
