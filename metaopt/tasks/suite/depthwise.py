"""A convolutional network of depthwise convolutions and hard-swish, as MobileNetV3 has them."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from metaopt.tasks.suite.base import PairTask, Parts
from metaopt.tasks.suite.images import CLASSES, image_parts


class InvertedResidual(nn.Module):
    """Widens the channels, convolves each by itself, and narrows them; batch norm after each.

    Source: Howard et al., Searching for MobileNetV3 (2019), without squeeze and excitation.

    Args:
        into: channels of the input.
        out: channels of the output; equal ones have a shortcut.
        stride: 2 halves the images.
        expansion: how many times wider it is between.
    """

    def __init__(self, into: int, out: int, stride: int = 1, expansion: int = 3) -> None:
        super().__init__()
        wide = expansion * into
        self.inner = nn.Sequential(
            nn.Conv2d(into, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.Hardswish(),
            nn.Conv2d(wide, wide, 3, stride, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.Hardswish(),
            nn.Conv2d(wide, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.shortcut = into == out and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """Return the output.

        Args:
            x: ``(n, into, height, width)``.
        """
        inner: Tensor = self.inner(x)
        return x + inner if self.shortcut else inner


class DepthwiseNet(PairTask):
    """Four blocks of depthwise convolutions say the garment of an image of 14×14; batches of 32.

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
        return nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1, stride=2, bias=False),
            nn.BatchNorm2d(12),
            nn.Hardswish(),
            InvertedResidual(12, 12),
            InvertedResidual(12, 24, stride=2),
            InvertedResidual(24, 24),
            InvertedResidual(24, 24),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(24, 64),
            nn.Hardswish(),
            nn.Linear(64, CLASSES),
        )
