"""Errors whose messages are written for the people who use the package."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches

LONGEST = 290
"""Characters of a message; one that gives grouped reasons may have twice as many."""


class UserError(ValueError):
    """Raised for input that cannot be used, with a message that says what to do instead.

    The message is one line in three parts: what was expected, what came, and what to do. Both
    scripts print it on stderr and exit with code 2.

    Args:
        message: the message; its middle is left out where it is too long.
        longest: the most characters that it may have.
    """

    def __init__(self, message: str, longest: int = LONGEST) -> None:
        super().__init__(cut(" ".join(message.split()), longest))


def cut(text: str, longest: int = 60) -> str:
    """Return a text with its middle left out where it is too long.

    Args:
        text: the text.
        longest: the most characters to return.

    Example:
        >>> cut("runs/a_long_name/best.safetensors", 25)
        'runs/a_long...safetensors'
    """
    if len(text) <= longest:
        return text
    end = (longest - 3) // 2
    return f"{text[: longest - 3 - end]}...{text[len(text) - end :]}"


def shown(value: object) -> str:
    """Return what a user gave as the text of a message: its ``repr``, cut to 60 characters.

    Args:
        value: the value.
    """
    try:
        return cut(repr(value))
    except ValueError:  # a whole number of more digits than Python prints
        return f"a {type(value).__name__} of many digits"


def nearest(given: object, known: Collection[str]) -> str:
    """Return the known name that is most like the given one, or "" if none is like it.

    Capital letters, and dashes instead of underscores, make no difference. The beginning of one
    name alone stands for that name.

    Args:
        given: what a user gave.
        known: the known names.

    Example:
        >>> nearest("--batch-size", ["--batch_size", "--steps"]), nearest("xyz", ["gd"])
        ('--batch_size', '')
    """
    forms = {_form(name): name for name in known}
    form = _form(str(given)[:100])
    longer = [name for name in forms if name.startswith(form)]
    found = longer if form and len(longer) == 1 else get_close_matches(form, forms, 1)
    return forms[found[0]] if found else ""


def _form(name: str) -> str:
    return name.casefold().replace("-", "_")


def unknown(what: str, given: object, known: Collection[str], advice: str = "name one") -> str:
    """Return the message for a name that is not known.

    Args:
        what: what the name is of, with its article, such as "a loss".
        given: what a user gave.
        known: the known names; the message has the first of them.
        advice: what to do where no known name is like the given one.

    Example:
        >>> unknown("a loss", "nrm", ["half_squared", "norm"])
        "expected a loss of half_squared, norm, got 'nrm': did you mean norm?"
    """
    return f"expected {what} of {listed(known)}, got {shown(given)}: " + (
        f"did you mean {name}?" if (name := nearest(given, known)) else advice
    )


def listed(names: Collection[str], longest: int = 120) -> str:
    """Return names in one line, and how many more there are than fit into it.

    Args:
        names: the names.
        longest: the most characters to return, the count aside.

    Example:
        >>> listed(["gd", "adam", "momentum"], 8)
        'gd, adam and 1 more'
    """
    line = ""
    for count, name in enumerate(names):
        longer = f"{line}, {name}" if line else cut(name)
        if len(longer) > longest and line:
            return f"{line} and {len(names) - count} more"
        line = longer
    return line


class Interrupted(Exception):
    """Raised when a run has ended early because a signal, such as SIGTERM, asked it to.

    Attributes:
        signal: the number of the signal. Both scripts exit with 128 more than it.
        where: how far the run had come, in words for the user.
    """

    def __init__(self, signal: int, where: str = "") -> None:
        super().__init__(f"interrupted {where}".strip())
        self.signal = signal
        self.where = where
