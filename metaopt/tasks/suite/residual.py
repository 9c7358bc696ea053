"""A small residual convolutional network with batch norm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from metaopt.tasks.suite.base import PairTask, Parts
from metaopt.tasks.suite.images import CLASSES, image_parts


class ResidualBlock(nn.Module):
    """Two convolutions of 3×3 with batch norm beside a shortcut.

    Args:
        into: channels of the input.
        out: channels of the output; where there are more, images become half as wide and high.
        activation: makes the activation.
    """

    def __init__(self, into: int, out: int, activation: Callable[[], nn.Module] = nn.ReLU) -> None:
        super().__init__()
        stride = 1 if into == out else 2
        self.first = nn.Conv2d(into, out, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(out)
        self.second = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(out)
        self.activation = activation()
        shortcut = nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.shortcut: nn.Module = nn.Identity() if into == out else shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Return the output.

        Args:
            x: ``(n, into, height, width)``.
        """
        inner = self.activation(self.first_norm(self.first(x)))
        out: Tensor = self.activation(self.second_norm(self.second(inner)) + self.shortcut(x))
        return out


def residual_network(
    widths: Sequence[int],
    blocks: int,
    outputs: int,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Return a residual network for grey images.

    Args:
        widths: channels of each stage, all different.
        blocks: of a stage.
        outputs: numbers of an output.
        activation: makes the activations.
    """
    first = widths[0]
    layers: list[nn.Module] = [
        nn.Conv2d(1, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), activation()
    ]  # fmt: skip
    into = first
    for width in widths:
        for _ in range(blocks):
            layers.append(ResidualBlock(into, width, activation))
            into = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(into, outputs))


class ResidualNet(PairTask):
    """Three stages of a block, 8, 16 and 32 channels, say the garment of an image of 14×14.

    Batches have 32 images.

    Args:
        data_dir: the folder that has a folder of each data set; by default ``$METAOPT_DATA``.
    """

    steps: ClassVar[int] = 500

    def __init__(self, data_dir: str | Path | None = None) -> None:
        super().__init__(32, data_dir)

    def parts(self) -> Parts:
        """Return the images and garments of each split."""
        return image_parts("fashion-mnist", 14, self.data_dir)

    def build(self) -> nn.Module:
        """Return a fresh network."""
        return residual_network((8, 16, 32), 1, CLASSES)
