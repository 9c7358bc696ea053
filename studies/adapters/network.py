"""The character model, its adapters, and the texts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).parents[2]
LENGTH = 64
WIDTH, HEADS, BLOCKS = 64, 4, 2
CHARACTERS = "".join(map(chr, range(32, 127))) + "\n"


class LowRank(nn.Module):
    """A frozen layer with a low-rank pair beside it: W x + b + B A x.

    Args:
        layer: the layer.
        rank: of the pair.
        scale: how many times as large as usual A is drawn; B is 0.
        generator: draws A.
    """

    def __init__(self, layer: nn.Linear, rank: int, scale: float, generator: torch.Generator):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        bound = scale / layer.in_features**0.5  # as peft draws it
        drawn = torch.empty(rank, layer.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(drawn)
        self.lora_B = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """Rows to rows."""
        result: Tensor = self.layer(x) + x @ self.lora_A.T @ self.lora_B.T
        return result


NORMS: dict[str, Callable[[], nn.Module]] = {
    "layer": partial(nn.LayerNorm, WIDTH),
    "root mean square": partial(nn.RMSNorm, WIDTH, elementwise_affine=False),
}
"""Norms by name; that of the root mean square has no gain, so that the stream may be rotated."""


class Block(nn.Module):
    """Causal attention and a layer of ReLU units, each behind a norm and beside a skip.

    Args:
        norm: the name of the norms.
    """

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = NORMS[norm](), NORMS[norm]()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """From ``(batch, length, width)`` to the same."""
        shape = (*x.shape[:2], HEADS, WIDTH // HEADS)
        q, k, v = (t.reshape(shape).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        result: Tensor = x + self.down(F.relu(self.up(self.norm2(x))))
        return result


class CharacterModel(nn.Module):
    """A transformer that says which character comes next.

    Args:
        norm: the name of its norms.
    """

    def __init__(self, norm: str = "layer") -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(len(CHARACTERS), WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList([Block(norm) for _ in range(BLOCKS)])
        self.norm, self.head = NORMS[norm](), nn.Linear(WIDTH, len(CHARACTERS))

    def forward(self, x: Tensor) -> Tensor:
        """From characters ``(batch, length)`` to logits."""
        h = self.tokens(x) + self.places.weight[: x.shape[1]]
        for block in self.blocks:
            h = block(h)
        logits: Tensor = self.head(self.norm(h))
        return logits

    def loss(self, batch: Tensor) -> Tensor:
        """The cross entropy of the next characters, in nats.

        Args:
            batch: ``(batch, length + 1)``.
        """
        return F.cross_entropy(self(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    def adapt(self, rank: int, scale: float, seed: int) -> None:
        """Freeze the model, and put a pair beside each layer of the blocks.

        Args:
            rank: of the pairs.
            scale: how many times as large as usual A is drawn.
            seed: of the drawing.
        """
        self.requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        for block in self.blocks:
            for name in ("qkv", "out", "up", "down"):
                setattr(block, name, LowRank(getattr(block, name), rank, scale, generator))


def text(folder: str, pattern: str) -> tuple[Tensor, Tensor]:
    """Return the characters of all files of a folder, and those of each tenth file, held out.

    Args:
        folder: beside this package.
        pattern: of the files.
    """
    known = {character: place for place, character in enumerate(CHARACTERS)}
    parts: tuple[list[int], list[int]] = ([], [])
    for place, path in enumerate(sorted((ROOT / folder).rglob(pattern))):
        own = [known[c] for c in path.read_text(encoding="utf-8") if c in known]
        parts[place % 10 == 9].extend(own)
    train, test = (torch.tensor(part) for part in parts)
    return train, test


def batch(characters: Tensor, generator: torch.Generator, size: int = 16) -> Tensor:
    """Return pieces of a text, ``(size, length + 1)``.

    Args:
        characters: the text.
        generator: draws where they begin.
        size: how many.
    """
    starts = torch.randint(len(characters) - LENGTH - 1, (size, 1), generator=generator)
    return characters[starts + torch.arange(LENGTH + 1)]
