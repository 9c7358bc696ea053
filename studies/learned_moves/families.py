"""Which tasks m2 is trained on, chosen by, and measured on."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from studies.learned_moves.characters import BASE, PRETRAINING, tuning
from studies.learned_moves.tasks import (
    Family,
    adapted,
    attention,
    cross_entropy,
    relative_error,
)

FIRST = {"train": 10**6, "validation": 10**4, "test": 10**5}
"""The first seed of each role; those of trainings are drawn from there on."""

COUNT = {"adapters": 16, "attention": 8, "characters": 4}
"""Tasks of a family that are measured."""

USUAL, WIDE, SHORT = (16, 24, 24, 8), (16, 48, 48, 48, 8), (12, 32, 6)


def _adapters(widths: tuple[int, ...], rank: int) -> Family:
    draw = partial(adapted, widths=widths, rank=rank)
    name = f"rank {rank} in {'-'.join(map(str, widths))}"
    return Family("adapters", name, draw, relative_error)


def _attention(heads: int, of_head: int, length: int) -> Family:
    draw = partial(attention, heads=heads, of_head=of_head, length=length)
    return Family("attention", f"{heads} × {of_head}", draw, cross_entropy)


def families(role: str, folder: Path, pretraining: int = PRETRAINING) -> list[Family]:
    """Return the families of a role. Tunings of characters are not trained on.

    Args:
        role: a key of :data:`FIRST`.
        folder: of the study, which keeps the pretrained model of characters.
        pretraining: steps of its training.
    """

    def characters(rank: int) -> Family:
        draw = partial(tuning, role=role, rank=rank, path=folder / BASE, steps=pretraining)
        return Family("characters", f"rank {rank}", draw, cross_entropy)

    if role == "train":
        adapters = [*(_adapters(USUAL, rank) for rank in (2, 4, 8)), _adapters(SHORT, 4)]
        return [*adapters, _attention(1, 8, 10)]
    if role == "validation":
        adapters = [_adapters(USUAL, rank) for rank in (2, 8)]
        return [*adapters, _attention(2, 6, 12), characters(4)]
    adapters = [*(_adapters(USUAL, rank) for rank in (2, 4, 8)), _adapters(WIDE, 6)]
    return [*adapters, _attention(2, 6, 12), _attention(3, 6, 12), characters(4)]
