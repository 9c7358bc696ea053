"""A model of characters with attention, on the sources of Python's standard library."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from metaopt.tasks.suite.attention import AttentionBlock
from metaopt.tasks.suite.base import TextTask
from metaopt.tasks.suite.text import CHARACTERS, source_text

LENGTH = 48
"""Characters of a window."""


class CharacterModel(nn.Module):
    """Says the next character from those before it, by blocks of causal attention.

    Args:
        width: of the stream.
        depth: number of blocks.
        heads: number of heads.
        length: most characters of a window.
    """

    def __init__(self, width: int = 48, depth: int = 2, heads: int = 4, length: int = LENGTH):
        super().__init__()
        self.embed = nn.Embedding(CHARACTERS, width)
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(
            *(AttentionBlock(width, heads, causal=True) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CHARACTERS)
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Return numbers of each next character, ``(windows, length, characters)``.

        Args:
            x: characters ``(windows, length)``.
        """
        stream = self.embed(x) + self.places[: x.shape[1]]
        out: Tensor = self.head(self.norm(self.blocks(stream)))
        return out


class AttentionCharacters(TextTask):
    """Two blocks of width 48 say the next of 48 characters of the sources; batches of 8."""

    steps: ClassVar[int] = 600

    def __init__(self) -> None:
        super().__init__(8, LENGTH)

    def text(self) -> dict[str, Tensor]:
        """Return the characters of each split."""
        return source_text()

    def build(self) -> nn.Module:
        """Return a fresh network."""
        return CharacterModel()
