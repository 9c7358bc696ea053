"""Networks that the cost of a teleport is measured on: ResNet-18, a U-Net, a small MLP."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))  # studies/ is not installed

from studies.untuned.resnet import ResNet18


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
