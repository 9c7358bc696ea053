"""The one exception of the package that is meant for people, and a check that raises it."""

from __future__ import annotations

from collections.abc import Collection, Sequence


class UserError(ValueError):
    """Input that cannot be used.

    The message is one line in three parts: what was expected, what came, and what to do.
    The command lines print it on stderr and exit with code 2.
    """


def check_names(what: str, names: Sequence[str], known: Collection[str]) -> None:
    """Some of the known names, at least one.

    Raises:
        UserError: if there is none, or an unknown one.
    """
    if not names or any(name not in known for name in names):
        raise UserError(
            f"expected {what} of {', '.join(known)}, got {list(names)}: name at least one"
        )
