"""Errors whose messages are written for the people who use the package."""

from __future__ import annotations


class UserError(ValueError):
    """Raised for input that cannot be used, with a message that says what to do instead.

    The message is one line in three parts: what was expected, what came, and what to do. Both
    scripts print it on stderr and exit with code 2.
    """


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
