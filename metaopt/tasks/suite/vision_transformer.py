"""A small vision transformer."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from metaopt.tasks.suite.attention import AttentionBlock
from metaopt.tasks.suite.base import PairTask, Parts
from metaopt.tasks.suite.images import CLASSES, image_parts


class VisionTransformer(nn.Module):
    """Cuts grey images into patches, and mixes these by attention; the mean says the class.

    Args:
        side: pixels of a side of the image.
        patch: pixels of a side of a patch.
        width: of the stream.
        depth: number of blocks.
        heads: number of heads.
        outputs: numbers of an output.
    """

    def __init__(
        self, side: int, patch: int, width: int, depth: int, heads: int, outputs: int
    ) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(patch * patch, width)
        self.places = nn.Parameter(0.02 * torch.randn((side // patch) ** 2, width))
        self.blocks = nn.Sequential(
            *(AttentionBlock(width, heads, causal=False) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return numbers of each class.

        Args:
            x: ``(n, 1, side, side)``.
        """
        n, rows = len(x), x.shape[-1] // self.patch
        cut = x.reshape(n, rows, self.patch, rows, self.patch).transpose(2, 3)
        stream = self.embed(cut.reshape(n, rows * rows, -1)) + self.places
        out: Tensor = self.head(self.norm(self.blocks(stream)).mean(dim=1))
        return out


class Vision(PairTask):
    """Three blocks of width 40 say the garment of an image of 28×28, patches of 7×7; batches of 32.

    Args:
        data_dir: the folder that has a folder of each data set; by default ``$METAOPT_DATA``.
    """

    steps: ClassVar[int] = 600

    def __init__(self, data_dir: str | Path | None = None) -> None:
        super().__init__(32, data_dir)

    def parts(self) -> Parts:
        """Return the images and garments of each split."""
        return image_parts("fashion-mnist", 28, self.data_dir)

    def build(self) -> nn.Module:
        """Return a fresh network."""
        return VisionTransformer(28, 7, width=40, depth=3, heads=4, outputs=CLASSES)
