"""``--verify-results``: make the README's table again, and say where it differs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from metaopt.errors import UserError, unknown
from metaopt.evaluation.evaluate import Result, evaluate
from metaopt.evaluation.methods import known_methods, resolve
from metaopt.evaluation.reference import (
    FLOOR,
    MEAN_TOLERANCE,
    NEAR_FLOOR,
    TOLERANCE,
    WORST,
    compare,
    reference,
)
from metaopt.evaluation.table import as_text, number, summarise
from metaopt.extras import DISTRIBUTION
from metaopt.tasks import RegressionFamily, first_seeds


def verify(asked: Sequence[str]) -> bool:
    """Evaluate methods of the README's table again, and print which numbers differ.

    Args:
        asked: names of methods of the table; none for all.

    Returns:
        Whether no number differs.

    Raises:
        UserError: for a method that the table does not have.
    """
    known = reference()
    table = known["methods"]
    names = _chosen(asked, list(table))
    steps, seeds = known["steps"], first_seeds("test", known["problems"])
    methods = [resolve(name) for name in names]
    results = announced(evaluate(methods, RegressionFamily(), seeds, steps), len(names))
    print(as_text(summarise(results), steps))
    cells = list(compare(results, table))
    differing = [cell for cell in cells if not cell.same]
    for cell in differing:
        place = "worst problem" if cell.where == WORST else f"step {cell.where}"
        shown, found = number(cell.shown), number(cell.found)
        print(f"{cell.method}, {place}: the README shows {shown}, this run gave {found}")
    same = len(cells) - len(differing)
    print(
        f"{same} of {len(cells)} numbers of {len(results)} methods are the README's, within "
        f"{100 * MEAN_TOLERANCE:g} % (worst problems {100 * TOLERANCE[WORST]:g} %, losses below "
        f"{FLOOR:g} a factor of {NEAR_FLOOR:g})"
    )
    return not differing


def announced(results: Iterable[Result], count: int, loud: bool = True) -> list[Result]:
    """Return all results as a list, and name each method on stderr when it is done.

    Args:
        results: one for each method.
        count: how many there will be.
        loud: whether to print at all.
    """
    done: list[Result] = []
    for result in results:
        done.append(result)
        if loud:
            line = f"evaluated {result.method.name} ({len(done)} of {count})"
            print(line, file=sys.stderr, flush=True)
    return done


def _chosen(asked: Sequence[str], table: list[str]) -> list[str]:
    by_name = {key.partition("@")[0]: key for key in table}
    for name in asked:
        if name not in by_name and name not in table:
            what, advice = "methods of the README's table, one", "name one, or leave --methods out"
            raise UserError(unknown(what, name, by_name, advice))
    chosen = [by_name.get(name, name) for name in asked] or table
    absent = [key for key in chosen if key.partition("@")[0] not in known_methods()]
    if absent:
        print(f"left out, as they need the extra 'studies': {', '.join(absent)}", file=sys.stderr)
    present = [key for key in chosen if key not in absent]
    if not present:
        raise UserError(
            f"expected a method that is installed, got {', '.join(absent)}: "
            f"pip install '{DISTRIBUTION}[studies]', or name others"
        )
    return present
