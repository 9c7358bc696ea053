"""What the tasks of the suite share: seeded modules, and minibatches of data in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from metaopt.checks import check_choice
from metaopt.randomness import same_randomness
from metaopt.tasks.data import batches
from metaopt.tasks.task import SPLITS, Task

Pair = tuple[Tensor, Tensor]
"""Inputs and what is to be said of them, ``(n, ...)`` each."""

Parts = dict[str, Pair]
"""The pairs of each split."""

EVALUATED = 500
"""Pairs of a batch of the validation and test splits."""


def generator_of(seed: int, split: str) -> torch.Generator:
    """Return a generator of samples without end; each split has its own.

    Args:
        seed: from 0 to 2^63 - 1.
        split: one of ``SPLITS``.
    """
    return torch.Generator().manual_seed(3 * (seed % 2**40) + SPLITS.index(split))


class SuiteTask(Task, ABC):
    """A task with a number of steps, whose data is fixed: a seed says the weights and the order.

    Attributes:
        steps: how many steps a run has.
    """

    steps: ClassVar[int] = 1000

    @abstractmethod
    def build(self) -> nn.Module:
        """Return a fresh module; initial weights are drawn from torch's global generator."""

    def model(self, seed: int) -> nn.Module:
        """Return a fresh module with the initial weights of a seed.

        Args:
            seed: from 0 to 2^63 - 1.
        """
        with same_randomness(seed):
            return self.build()


class PairTask(SuiteTask, ABC):
    """Says something of inputs that are all in memory; by default one of several classes.

    Args:
        batch: pairs of a minibatch.
        data_dir: the folder that has a folder of each data set; by default ``$METAOPT_DATA``.
    """

    def __init__(self, batch: int, data_dir: str | Path | None = None) -> None:
        self.batch = batch
        self.data_dir = data_dir

    @abstractmethod
    def parts(self) -> Parts:
        """Return the pairs of each split."""

    def batches(self, seed: int, split: str) -> Iterator[Pair]:
        """Return endless minibatches of the training pairs, or all pairs of another split, once.

        Args:
            seed: draws the order of the training pairs, another one in each epoch.
            split: one of ``SPLITS``.
        """
        check_choice("a split", split, SPLITS)
        x, y = self.parts()[split]
        if split != "train":
            return zip(torch.split(x, EVALUATED), torch.split(y, EVALUATED), strict=True)
        return _epochs((x, y), self.batch, torch.Generator().manual_seed(seed))

    def loss(self, model: nn.Module, batch: Pair) -> Tensor:
        """Return the mean cross entropy.

        Args:
            model: says numbers of each class.
            batch: inputs and classes.
        """
        x, y = batch
        return functional.cross_entropy(model(x), y)

    def metrics(self, model: nn.Module, batch: Pair) -> dict[str, Tensor]:
        """Return the accuracy.

        Args:
            model: says numbers of each class.
            batch: inputs and classes.
        """
        x, y = batch
        return {"accuracy": (model(x).argmax(dim=-1) == y).float().mean()}


def _epochs(pairs: Pair, size: int, generator: torch.Generator) -> Iterator[Pair]:
    while True:
        yield from batches(pairs, size, generator, drop_last=True)


class TextTask(SuiteTask, ABC):
    """Says the next character of a text at each place of a window.

    Args:
        batch: windows of a minibatch.
        length: characters of a window.
    """

    EVALUATED: ClassVar[int] = 8
    """Batches of the validation and test splits, each of 32 windows."""

    def __init__(self, batch: int, length: int) -> None:
        self.batch = batch
        self.length = length

    @abstractmethod
    def text(self) -> dict[str, Tensor]:
        """Return the characters of each split, uint8 ``(n,)``."""

    def batches(self, seed: int, split: str) -> Iterator[Pair]:
        """Return endless windows at random places, or windows of another split at even distances.

        Args:
            seed: draws the places of the training windows.
            split: one of ``SPLITS``.
        """
        check_choice("a split", split, SPLITS)
        text, window = self.text()[split], torch.arange(self.length + 1)
        places = len(text) - self.length
        if split == "train":
            generator = torch.Generator().manual_seed(seed)
            drawn = _drawn(places, self.batch, generator)
        else:
            even = torch.linspace(0, places - 1, 32 * self.EVALUATED, dtype=torch.float64)
            drawn = iter(torch.split(even.long(), 32))
        return ((w[:, :-1], w[:, 1:]) for w in (text[at[:, None] + window].long() for at in drawn))

    def loss(self, model: nn.Module, batch: Pair) -> Tensor:
        """Return the mean cross entropy, in nats a character.

        Args:
            model: says numbers of each character, ``(windows, length, characters)``.
            batch: characters, and the next ones.
        """
        x, y = batch
        return functional.cross_entropy(model(x).flatten(0, 1), y.flatten())

    def metrics(self, model: nn.Module, batch: Pair) -> dict[str, Tensor]:
        """Return the accuracy.

        Args:
            model: says numbers of each character.
            batch: characters, and the next ones.
        """
        x, y = batch
        return {"accuracy": (model(x).argmax(dim=-1) == y).float().mean()}


def _drawn(places: int, count: int, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        yield torch.randint(places, (count,), generator=generator)
