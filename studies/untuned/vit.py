"""A vision transformer with a class token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metaopt.tasks.suite.attention import AttentionBlock


class ViT(nn.Module):
    """Cuts coloured images into patches, and mixes these and a class token by attention.

    Its default sizes are those of ViT-tiny, with small patches for small images.

    Source: Dosovitskiy et al. (2020), arXiv 2010.11929.

    Args:
        side: pixels of a side of the image.
        patch: pixels of a side of a patch.
        width: of the stream.
        depth: number of blocks.
        heads: number of heads.
        classes: numbers of an output.
    """

    def __init__(
        self,
        side: int = 32,
        patch: int = 4,
        width: int = 192,
        depth: int = 12,
        heads: int = 3,
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, 1 + (side // patch) ** 2, width))
        self.blocks = nn.Sequential(
            *(AttentionBlock(width, heads, causal=False, expansion=4) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return numbers of each class.

        Args:
            x: ``(n, 3, side, side)``.
        """
        patches = self.embed(x).flatten(2).mT
        stream = torch.cat((self.token.expand(len(x), -1, -1), patches), dim=1) + self.places
        out: Tensor = self.head(self.norm(self.blocks(stream)[:, 0]))
        return out
