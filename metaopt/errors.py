"""The one exception of the package that is meant for people."""

from __future__ import annotations


class UserError(ValueError):
    """Input that cannot be used.

    The message is one line in three parts: what was expected, what came, and what to do.
    The command lines print it on stderr and exit with code 2.
    """
