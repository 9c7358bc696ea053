"""Low-rank tunings of a small model of characters to other texts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from metaopt.storage import write_atomically
from metaopt.tasks.suite.small import Block, SequenceModel
from metaopt.tasks.suite.text import CHARACTERS, help_text, source_text
from metaopt.training.distributions import drawn_evenly_in_logarithms
from studies.adapters.network import LowRank, text
from studies.learned_moves.tasks import Copy, Pair, cross_entropy

BASE = "base.safetensors"
WIDTH, HEADS, BLOCKS, LENGTH = 32, 2, 1, 24
PRETRAINING = 1500
TEXTS = {
    "train": ("metaopt", "tests"),
    "validation": ("studies",),
    "test": ("help", "library"),
}
"""Texts of each role: folders of this repository, Python's help pages and its library."""


def network() -> SequenceModel:
    """Return a model of characters with one block."""
    model = SequenceModel(WIDTH, HEADS, BLOCKS, LENGTH)
    model.tokens, model.head = nn.Embedding(CHARACTERS, WIDTH), nn.Linear(WIDTH, CHARACTERS)
    return model


@cache
def pretrained(path: Path, steps: int) -> dict[str, Tensor]:
    """Return weights that were trained on the pages of this repository; they are kept.

    Args:
        path: the file that keeps them.
        steps: of the training.
    """
    if not path.exists():
        torch.manual_seed(0)
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        pieces = _pieces(text("docs", "*.md")[0], 0, 32)
        for _ in range(steps):
            optimizer.zero_grad()
            x, y = next(pieces)
            torch.autograd.backward(cross_entropy(model(x), y))
            optimizer.step()
            schedule.step()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, save(model.state_dict()))
    return load_file(path)


@cache
def _text(name: str) -> tuple[Tensor, Tensor]:
    """Return the characters of a text, and those that are held out."""
    known = {"help": help_text, "library": source_text}
    if name in known:
        parts = known[name]()
        return parts["train"].long(), parts["test"].long()
    return text(name, "*.py")


def _pieces(characters: Tensor, seed: int, size: int) -> Iterator[Pair]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(characters) - LENGTH - 1, (size, 1), generator=generator)
        drawn = characters[starts + torch.arange(LENGTH + 1)]
        yield drawn[:, :-1], drawn[:, 1:]


def tuning(seed: int, role: str, rank: int, path: Path, steps: int) -> Copy:
    """Return a tuning of the pretrained model; the seed draws the text, A and its scale.

    Args:
        seed: of the task.
        role: a key of :data:`TEXTS`.
        rank: of the adapters.
        path: of the pretrained weights.
        steps: of the pretraining.
    """
    generator = torch.Generator().manual_seed(seed)
    names = TEXTS[role]
    own = names[seed % len(names)]
    scale = drawn_evenly_in_logarithms(generator, 0.1, 10.0)
    model = network()
    model.load_state_dict(pretrained(path, steps))
    model.requires_grad_(False)
    for block in model.blocks:
        assert isinstance(block, Block)
        for name in ("qkv", "out", "up", "down"):
            setattr(block, name, LowRank(getattr(block, name), rank, scale, generator))

    def batches(seed: int, size: int) -> Iterator[Pair]:
        return _pieces(_text(own)[0], seed, size)

    def held_out(seed: int, size: int) -> Iterator[Pair]:
        return _pieces(_text(own)[1], seed, size)

    return Copy(model, batches, held_out)
