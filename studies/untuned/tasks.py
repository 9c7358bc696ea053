"""The four networks with their data, as tasks; and tiny ones of the same kinds."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from metaopt.storage import user_path
from metaopt.tasks.data import Images, load, standardized
from metaopt.tasks.suite.base import PairTask, Parts, TextTask
from metaopt.tasks.suite.characters import CharacterModel
from metaopt.tasks.suite.text import source_text, text_digest
from studies.untuned.mobilenet import SMALL, MobileNetV3
from studies.untuned.resnet import ResNet18
from studies.untuned.runs import Subject
from studies.untuned.vit import ViT

BATCH = 32
TRAIN, HELD_OUT = 10_000, 512
LENGTH = 64
"""Characters of a window."""

Build = Callable[[], nn.Module]


@lru_cache(maxsize=2)
def cifar_parts(data_dir: str | None) -> Parts:
    """Load CIFAR-10: the first 10,000 training images, the next 512, and 512 test images.

    The mean and the standard deviation of each channel are those of the training images.

    Args:
        data_dir: the folder that has the folder ``cifar10``; None for ``$METAOPT_DATA``.
    """
    train, test = load("cifar10", None if data_dir is None else user_path(data_dir) / "cifar10")[1:]
    most = min(TRAIN, len(train.labels) * 3 // 4)
    parts = {
        "train": Images(*(own[:most] for own in train)),
        "validation": Images(*(own[most : most + HELD_OUT] for own in train)),
        "test": Images(*(own[:HELD_OUT] for own in test)),
    }
    seen = standardized(parts["train"]).transpose(0, 1).flatten(1)
    mean, std = seen.mean(dim=1).tolist(), seen.std(dim=1).tolist()
    return {name: (standardized(own, mean, std), own.labels) for name, own in parts.items()}


class CifarTask(PairTask):
    """Says the class of an image of CIFAR-10.

    Args:
        network: makes the network.
        data_dir: the folder that has the folder ``cifar10``; None for ``$METAOPT_DATA``.
    """

    def __init__(self, network: Build, data_dir: str | Path | None) -> None:
        super().__init__(BATCH, data_dir)
        self.network = network

    def parts(self) -> Parts:
        """Return the images and classes of each split."""
        return cifar_parts(None if self.data_dir is None else str(self.data_dir))

    def build(self) -> nn.Module:
        """Return a fresh network."""
        return self.network()


class CharactersTask(TextTask):
    """Says the next characters of the sources of Python's standard library.

    Args:
        network: makes the network.
    """

    EVALUATED: ClassVar[int] = HELD_OUT // 32

    def __init__(self, network: Build) -> None:
        super().__init__(BATCH, LENGTH)
        self.network = network

    def text(self) -> dict[str, Tensor]:
        """Return the characters of each split."""
        return source_text()

    def build(self) -> nn.Module:
        """Return a fresh network."""
        return self.network()


NETWORKS: dict[str, Build] = {
    "mobilenet_v3_small": MobileNetV3,
    "gpt": lambda: CharacterModel(width=128, depth=12, heads=4, length=LENGTH),
    "vit_tiny": ViT,
    "resnet18": lambda: ResNet18(small_images=True),
}
"""The networks by name, the quickest first."""

TINY: dict[str, Build] = {
    "mobilenet_v3_small": lambda: MobileNetV3(SMALL[:2]),
    "gpt": lambda: CharacterModel(width=8, depth=2, heads=2, length=LENGTH),
    "vit_tiny": lambda: ViT(patch=8, width=12, depth=2),
    "resnet18": lambda: ResNet18(2, small_images=True),
}
"""Tiny networks of the same kinds."""


def subjects(data_dir: str | None, quick: bool) -> dict[str, Subject]:
    """Return the networks with their data, by name.

    Args:
        data_dir: the folder that has the folder ``cifar10``; None for ``$METAOPT_DATA``.
        quick: whether the networks are tiny ones.
    """
    return {
        name: Subject(CharactersTask(build), text_digest())
        if name == "gpt"
        else Subject(CifarTask(build, data_dir), "cifar10")
        for name, build in (TINY if quick else NETWORKS).items()
    }
