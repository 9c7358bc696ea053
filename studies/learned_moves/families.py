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

USUAL, WIDE, SHORT = (16, 24, 24, 8), (16, 48, 48, 48, 8), (12, 32, 6)


def _adapters(widths: tuple[int, ...], rank: int) -> Family:
    draw = partial(adapted, widths=widths, rank=rank)
    name = f"adapters of rank {rank} in {'-'.join(map(str, widths))}"
    return Family("adapters", name, draw, relative_error, 100)


def _characters(role: str, rank: int, folder: Path, pretraining: int) -> Family:
    draw = partial(tuning, role=role, rank=rank, path=folder / BASE, steps=pretraining)
    return Family("characters", f"characters, rank {rank}", draw, cross_entropy, 100)


def _attention(heads: int, of_head: int, length: int) -> Family:
    draw = partial(attention, heads=heads, of_head=of_head, length=length)
    return Family("attention", f"attention, {heads} × {of_head}", draw, cross_entropy, 150)


def families(role: str, folder: Path, pretraining: int = PRETRAINING) -> list[Family]:
    """Return the families of a role.

    Args:
        role: a key of :data:`FIRST`.
        folder: of the study, which keeps the pretrained model of characters.
        pretraining: steps of its training.
    """
    characters = partial(_characters, role, folder=folder, pretraining=pretraining)
    if role == "train":
        return [
            *(_adapters(USUAL, rank) for rank in (2, 4, 8)), _adapters(SHORT, 4),
            characters(2), characters(8), _attention(2, 6, 12), _attention(1, 8, 10),
        ]  # fmt: skip
    if role == "validation":
        return [
            *(_adapters(USUAL, rank) for rank in (2, 8)), characters(4), _attention(2, 6, 12)
        ]  # fmt: skip
    return [
        *(_adapters(USUAL, rank) for rank in (2, 4, 8)), _adapters(WIDE, 6),
        *(characters(rank) for rank in (2, 4, 8)), _attention(2, 6, 12), _attention(4, 8, 16),
    ]  # fmt: skip
