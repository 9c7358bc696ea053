"""Errors whose messages are written for the people who use the package, and one common check."""

from __future__ import annotations

from collections.abc import Collection, Sequence


class UserError(ValueError):
    """Raised for input that cannot be used, with a message that says what to do instead.

    The message is one line in three parts: what was expected, what came, and what to do. Both
    scripts print it on stderr and exit with code 2.
    """


def check_names(what: str, names: Sequence[str], known: Collection[str]) -> None:
    """Check that a list of names has at least one, and only known ones.

    Args:
        what: what the names are of, for the message, such as "methods".
        names: the names to check.
        known: the names that are allowed.

    Raises:
        UserError: if there is no name, or an unknown one.
    """
    if not names or any(name not in known for name in names):
        raise UserError(
            f"expected {what} of {', '.join(known)}, got {list(names)}: name at least one"
        )


class Interrupted(Exception):
    """Raised when a run has ended early because SIGINT or SIGTERM asked it to.

    Attributes:
        signal: the number of the signal. Both scripts exit with 128 more than it.
        where: how far the run had come, in words for the user.
    """

    def __init__(self, signal: int, where: str = "") -> None:
        super().__init__(f"interrupted {where}".strip())
        self.signal = signal
        self.where = where
