"""MobileNetV3-small: depthwise convolutions, gates of channels, hard-swish."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


class Stage(NamedTuple):
    """A block of the network.

    Attributes:
        kernel: pixels of a side of the depthwise kernel.
        wide: channels between.
        out: channels of the output.
        gated: whether channels are gated by what the whole image has of them.
        hard: whether its activation is hard-swish instead of ReLU.
        stride: 2 halves the images.
    """

    kernel: int
    wide: int
    out: int
    gated: bool
    hard: bool
    stride: int


SMALL = (
    Stage(3, 16, 16, True, False, 2),
    Stage(3, 72, 24, False, False, 2),
    Stage(3, 88, 24, False, False, 1),
    Stage(5, 96, 40, True, True, 2),
    Stage(5, 240, 40, True, True, 1),
    Stage(5, 240, 40, True, True, 1),
    Stage(5, 120, 48, True, True, 1),
    Stage(5, 144, 48, True, True, 1),
    Stage(5, 288, 96, True, True, 2),
    Stage(5, 576, 96, True, True, 1),
    Stage(5, 576, 96, True, True, 1),
)
"""The blocks of MobileNetV3-small, as in table 2 of the paper."""


class Gate(nn.Module):
    """Squeeze and excitation: scales each channel by what the means of all channels say.

    Args:
        channels: of the input.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(8, (channels // 4 + 4) // 8 * 8)
        self.inner = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            nn.ReLU(),
            nn.Conv2d(squeezed, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the input with its channels scaled.

        Args:
            x: ``(n, channels, height, width)``.
        """
        out: Tensor = x * self.inner(x)
        return out


def convolution(
    into: int, out: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """Return a convolution that keeps the size where the stride is 1, and its batch norm."""
    return [
        nn.Conv2d(into, out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out, eps=1e-3),
    ]


class Block(nn.Module):
    """Widens the channels, convolves each by itself, gates them, and narrows them.

    Args:
        into: channels of the input.
        of: what the block has.
    """

    def __init__(self, into: int, of: Stage) -> None:
        super().__init__()
        activation = nn.Hardswish if of.hard else nn.ReLU
        layers: list[nn.Module] = []
        if of.wide != into:
            layers += [*convolution(into, of.wide, 1), activation()]
        layers += [*convolution(of.wide, of.wide, of.kernel, of.stride, of.wide), activation()]
        if of.gated:
            layers.append(Gate(of.wide))
        self.inner = nn.Sequential(*layers, *convolution(of.wide, of.out, 1))
        self.shortcut = of.stride == 1 and into == of.out

    def forward(self, x: Tensor) -> Tensor:
        """Return the output.

        Args:
            x: ``(n, into, height, width)``.
        """
        inner: Tensor = self.inner(x)
        return x + inner if self.shortcut else inner


class MobileNetV3(nn.Sequential):
    """MobileNetV3-small with its own strides and initial weights, and torch's mean of batch norms.

    Source: Howard et al., Searching for MobileNetV3 (2019); initial weights as in torchvision.

    Args:
        blocks: its blocks; some of ``SMALL`` for a smaller network.
        classes: numbers of an output.
    """

    def __init__(self, blocks: tuple[Stage, ...] = SMALL, classes: int = 10) -> None:
        channels = [16, *(block.out for block in blocks)]
        last = 6 * channels[-1]
        super().__init__(
            *convolution(3, 16, 3, 2),
            nn.Hardswish(),
            *(Block(into, block) for into, block in zip(channels, blocks, strict=False)),
            *convolution(channels[-1], last, 1),
            nn.Hardswish(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(last, 1024),
            nn.Hardswish(),
            nn.Dropout(0.2),
            nn.Linear(1024, classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
