"""What the head of the report says about a run, from its manifest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from metaopt.evaluation.evaluate import Result
from metaopt.evaluation.table import Line, number

MOST_SEEDS = 8  # named one by one


class Fact(NamedTuple):
    """A term, and what is said about it.

    Attributes:
        term: the term.
        text: the text.
    """

    term: str
    text: str


class Lowest(NamedTuple):
    """The method with the lowest loss.

    Attributes:
        method: its name.
        loss: its loss as text.
    """

    method: str
    loss: str


def facts(manifest: Mapping[str, Any], results: Sequence[Result]) -> list[Fact]:
    """Return the facts of a run: its tasks, steps, family and versions.

    Args:
        manifest: what ``manifest.json`` holds.
        results: one for each method.
    """
    config, seeds = manifest["config"], manifest["problem_seeds"]
    start = float(results[0].losses[0].mean())
    return [
        Fact("Problems", f"{len(seeds)} held-out, of seeds {seeds_text(seeds)}"),
        Fact("Steps", f"{config['steps']} of each method, from a mean loss of {number(start)}"),
        Fact("Family", ", ".join(f"{name} {value}" for name, value in config["problem"].items())),
        Fact("Made with", made_with(manifest)),
    ]


def seeds_text(seeds: Sequence[int]) -> str:
    """Return seeds as text: a range, or the first few.

    Args:
        seeds: the seeds, in order.

    Example:
        >>> seeds_text(range(64)), seeds_text([3]), seeds_text([0, 7, 11])
        ('0 to 63', '3', '0, 7, 11')
    """
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds[:MOST_SEEDS])) + ", …" * (len(seeds) > MOST_SEEDS)


def made_with(manifest: Mapping[str, Any]) -> str:
    """Return the versions of the software, and the git revision of a checkout, as text.

    Args:
        manifest: what ``manifest.json`` holds.
    """
    known = {name: version for name, version in manifest["versions"].items() if version}
    own = f"metaopt {known.pop('metaopt', '(not installed)')}"
    if manifest["git_revision"]:
        own += f" at revision {manifest['git_revision']}"
    return ", ".join([own, *(f"{name} {version}" for name, version in known.items())])


def lowest(lines: Sequence[Line]) -> Lowest | None:
    """Return the method that is lowest at the last step; None if all have diverged.

    Args:
        lines: the lines of the table.
    """
    finite = [line for line in lines if math.isfinite(line.means[-1].mean)]
    if not finite:
        return None
    best = min(finite, key=lambda line: line.means[-1].mean)
    return Lowest(best.method, number(best.means[-1].mean))
