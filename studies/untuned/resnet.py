"""ResNet-18, with the stem for small images or the one for large ones."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two convolutions with batch norms, and a shortcut.

    Source: He et al. (2015), arXiv 1512.03385.

    Args:
        inputs: channels of the input.
        width: channels of the output.
        stride: 2 halves the images.
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the output.

        Args:
            x: ``(n, inputs, height, width)``.
        """
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        joined: Tensor = self.relu(self.bn2(self.conv2(out)) + shortcut)
        return joined


class ResNet18(nn.Module):
    """ResNet-18 as in torchvision, of another width if one is given.

    Args:
        width: channels of the first stage; 64 is usual.
        classes: numbers of an output.
        small_images: whether the stem is a convolution of 3×3 alone, as usual for 32×32 pixels.
    """

    def __init__(self, width: int = 64, classes: int = 10, small_images: bool = False) -> None:
        super().__init__()
        kernel, stride = (3, 1) if small_images else (7, 2)
        self.conv1 = nn.Conv2d(3, width, kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if small_images else nn.MaxPool2d(3, 2, 1)
        inputs, layers = width, OrderedDict[str, nn.Module]()
        for stage in range(4):
            own = width * 2**stage
            blocks = [BasicBlock(inputs, own, 1 + (stage > 0)), BasicBlock(own, own, 1)]
            layers[f"layer{stage + 1}"], inputs = nn.Sequential(*blocks), own
        self.layers = nn.Sequential(layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return numbers of each class.

        Args:
            x: ``(n, 3, height, width)``.
        """
        features = self.layers(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        out: Tensor = self.fc(torch.flatten(self.avgpool(features), 1))
        return out
