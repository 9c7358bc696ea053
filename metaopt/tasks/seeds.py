"""Seeds of tasks: which range is for what, enforced where problems are drawn.

A checkpoint that was chosen on the problems it is reported on proves nothing. So the ranges
are disjoint, training never takes a seed of the first two, and nothing is chosen on the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from metaopt.errors import UserError

TEST = range(0, 10**6)
VALIDATION = range(10**6, 2 * 10**6)
TRAINING = range(10**7, 2**63)  # torch generators take 64-bit seeds

PAPER_TEST_SEEDS = tuple(n * n * 12345 for n in range(5))
"""The five test problems of the paper's released code."""

ROLES = {"test": TEST, "validation": VALIDATION, "training": TRAINING}


def check_range(seeds: Iterable[int]) -> Iterator[int]:
    """``seeds``, or a :class:`UserError` naming the first that torch does not take."""
    for seed in seeds:
        if not 0 <= seed < TRAINING.stop:
            raise UserError(f"expected seeds in [0, 2^63), got {seed}: choose others")
        yield seed


def check_seeds(seeds: Iterable[int], role: str) -> list[int]:
    """``seeds`` as a list, or a :class:`UserError` naming the first outside the role's range."""
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
    """``count`` consecutive seeds of a role, from its ``offset``-th on."""
    if count < 1:
        raise UserError(f"expected at least 1 problem, got {count}: ask for a positive number")
    start = ROLES[role].start + offset
    return check_seeds(range(start, start + count), role)
