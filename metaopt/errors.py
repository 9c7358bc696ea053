"""The exceptions of the package that are meant for people, and a check that raises one."""

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


class Interrupted(Exception):
    """A run was asked to end, by SIGINT or SIGTERM, and did.

    Attributes:
        signal: its number; the command lines exit with 128 more.
        where: how far the run had come, for people.
    """

    def __init__(self, signal: int, where: str = "") -> None:
        super().__init__(f"interrupted {where}".strip())
        self.signal = signal
        self.where = where
