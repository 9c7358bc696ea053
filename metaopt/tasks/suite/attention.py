"""Blocks of attention, pre-norm and with GELU, as the transformers of the suite have them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Attention of several heads, written with products and a softmax alone.

    So it can be mapped over copies and differentiated twice, which fused kernels cannot.

    Args:
        width: of the stream, a multiple of ``heads``.
        heads: number of heads.
        causal: whether a place sees itself and those before it alone.
    """

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.into = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the heads say.

        Args:
            x: ``(n, places, width)``.
        """
        n, places, width = x.shape
        parts = self.into(x).reshape(n, places, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts[0], parts[1], parts[2]  # (n, heads, places, width / heads)
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        if self.causal:
            later = torch.ones(places, places, dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(later, -math.inf)
        heads = scores.softmax(dim=-1) @ value
        out: Tensor = self.out(heads.transpose(1, 2).reshape(n, places, width))
        return out


class AttentionBlock(nn.Module):
    """Attention, then two layers with GELU, each behind a norm and beside a shortcut.

    Args:
        width: of the stream.
        heads: number of heads.
        causal: whether a place sees itself and those before it alone.
        expansion: how many times wider the hidden layer is.
    """

    def __init__(self, width: int, heads: int, causal: bool, expansion: int = 3) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, causal)
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, expansion * width)
        self.activation = nn.GELU()
        self.narrow = nn.Linear(expansion * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream with what was added.

        Args:
            x: ``(n, places, width)``.
        """
        x = x + self.attention(self.attention_norm(x))
        out: Tensor = x + self.narrow(self.activation(self.widen(self.norm(x))))
        return out
