"""The seeds of tasks, in three ranges: for tests, for validation and for training.

A result on tasks that took part in a choice proves nothing. So the ranges are disjoint: training
takes seeds of the third alone, choices are made on the second, and the first is for what is
reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from metaopt.errors import UserError

TEST = range(0, 10**6)
VALIDATION = range(10**6, 2 * 10**6)
TRAINING = range(10**7, 2**63)  # torch generators take 64-bit seeds

PAPER_TEST_SEEDS = tuple(n * n * 12345 for n in range(5))
"""The seeds of the five test tasks in the paper's released code."""

ROLES = {"test": TEST, "validation": VALIDATION, "training": TRAINING}
"""The range of seeds of each role."""


def generators(seeds: Iterable[int]) -> Iterator[torch.Generator]:
    """Yield one generator a seed, to draw a task with.

    Args:
        seeds: integers from 0 to 2^63 - 1, at least one.

    Raises:
        UserError: at the first seed outside that range, or at the end if there was none.
    """
    seed = None
    for seed in seeds:
        if not 0 <= seed < TRAINING.stop:
            raise UserError(f"expected seeds in [0, 2^63), got {seed}: choose others")
        yield torch.Generator().manual_seed(seed)
    if seed is None:
        raise UserError("expected at least one problem seed, got none: name a seed")


def check_seeds(seeds: Iterable[int], role: str) -> list[int]:
    """Return seeds as a list, all of them in the range of a role.

    Args:
        seeds: the seeds to check.
        role: "test", "validation" or "training".

    Raises:
        UserError: naming the first seed outside the range.
    """
    allowed = ROLES[role]
    checked = []
    for seed in seeds:  # no list of more than a role has
        if seed not in allowed:
            raise UserError(
                f"expected {role} seeds in [{allowed.start}, {allowed.stop}), got {seed}: "
                f"choose seeds of that range"
            )
        checked.append(seed)
    return checked


def first_seeds(role: str, count: int, offset: int = 0) -> Sequence[int]:
    """Return consecutive seeds of a role.

    Args:
        role: "test", "validation" or "training".
        count: how many, 1 or more.
        offset: how many seeds at the beginning of the range to leave out.

    Raises:
        UserError: for a count below 1, or seeds beyond the range.
    """
    if count < 1:
        raise UserError(f"expected at least 1 problem, got {count}: ask for a positive number")
    start = ROLES[role].start + offset
    return check_seeds(range(start, start + count), role)
