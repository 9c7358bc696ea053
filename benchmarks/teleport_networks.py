"""Networks that the cost of a teleport is measured on: ResNet-18, a U-Net, a small MLP."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional


class BasicBlock(nn.Module):
    """Two convolutions with batch norms, and a shortcut (arXiv 1512.03385)."""

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
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + shortcut)


class ResNet18(nn.Module):
    """ResNet-18 as in torchvision, of another width if one is given."""

    def __init__(self, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs, layers = width, OrderedDict[str, nn.Module]()
        for stage in range(4):
            own = width * 2**stage
            blocks = [BasicBlock(inputs, own, 1 + (stage > 0)), BasicBlock(own, own, 1)]
            layers[f"layer{stage + 1}"], inputs = nn.Sequential(*blocks), own
        self.layers = nn.Sequential(layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        features = self.layers(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        return self.fc(torch.flatten(self.avgpool(features), 1))


def double_convolution(inputs: int, width: int) -> nn.Sequential:
    """(Convolution, batch norm, ReLU) twice."""
    return nn.Sequential(
        nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
    )  # fmt: skip


class UNet(nn.Module):
    """A U-Net (arXiv 1505.04597) with batch norms, padded, and transposed convolutions upwards."""

    def __init__(self, width: int = 64, depth: int = 3, classes: int = 2) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        inputs = [3, *widths]
        self.down = nn.ModuleList(map(double_convolution, inputs, widths))
        self.pool = nn.MaxPool2d(2)
        pairs = list(zip(widths[1:], widths, strict=False))[::-1]
        self.up = nn.ModuleList(nn.ConvTranspose2d(wide, own, 2, 2) for wide, own in pairs)
        self.merge = nn.ModuleList(double_convolution(wide, own) for wide, own in pairs)
        self.out = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skipped = []
        for down in self.down:
            x = down(x if not skipped else self.pool(x))
            skipped.append(x)
        skipped.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat((skipped.pop(), up(x)), dim=1))
        return self.out(x)


class Perceptron(nn.Sequential):
    """A multilayer perceptron with ReLU, of four times the width."""

    def __init__(self, width: int = 64, inputs: int = 784, classes: int = 10) -> None:
        width = 4 * width
        super().__init__(
            nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
            nn.Linear(width, classes),
        )  # fmt: skip


def data(name: str, samples: int, size: int) -> tuple[Tensor, Tensor]:
    """Return random (x, y) for a network, of ``size`` pixels a side where it takes images."""
    if name == "mlp":
        return torch.randn(samples, 784), torch.randint(10, (samples,))
    x = torch.randn(samples, 3, size, size)
    if name == "unet":
        return x, functional.avg_pool2d(x[:, 0], 3, 1, 1).gt(0).long()
    return x, torch.randint(10, (samples,))


NETWORKS = {"resnet18": ResNet18, "unet": UNet, "mlp": Perceptron}
"""The networks by name."""
