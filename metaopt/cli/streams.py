"""Standard streams that never decide over a run.

They may be closed, end early as a pipe into ``head`` does, be full, or lack a character.
"""

from __future__ import annotations

import codecs
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

UNWRITABLE = (OSError, ValueError)  # a pipe that has ended, a full disk, a closed stream


class SteadyStream:
    """A text stream that drops what it cannot write.

    A character that its encoding lacks is written as its escape, such as ``\\u5b57``, and a dash as
    ``-``.

    Args:
        stream: the stream to write to.

    Attributes:
        failure: the error after which nothing more was written; None if there was none.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.failure: OSError | ValueError | None = None

    def write(self, text: str) -> int:
        """Write a text, and return its length."""
        self._attempt(lambda: self._encoded(text))
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        self._attempt(self.stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _attempt(self, act: Callable[[], object]) -> None:
        if self.failure is None:
            try:
                act()
            except UNWRITABLE as error:
                self.failure = error

    def _encoded(self, text: str) -> None:
        try:
            self.stream.write(text)
        except UnicodeEncodeError:
            encoding = self.stream.encoding
            self.stream.write(text.encode(encoding, ESCAPED).decode(encoding))


ESCAPED = "metaopt.escaped"


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Return what stands for characters that an encoding lacks, for :mod:`codecs`."""
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    dashes = ("-" if unicodedata.category(c) == "Pd" else c for c in lacking)
    return "".join(dashes).encode("ascii", "backslashreplace").decode("ascii"), error.end


codecs.register_error(ESCAPED, _escaped)


@contextmanager
def steady() -> Iterator[SteadyStream]:
    """Make stdout and stderr steady inside the context.

    Yields:
        The steady stdout.
    """
    silent = sys.stderr is None  # whoever closes it wants to hear nothing; files say all
    _open_missing()
    before = sys.stdout, sys.stderr
    out, err = (s if isinstance(s, SteadyStream) else SteadyStream(s) for s in before)
    if silent:
        out = SteadyStream(sys.stderr)
    sys.stdout, sys.stderr = out, err
    try:
        yield out
    finally:
        sys.stdout, sys.stderr = before
        for stream in (out, err):
            stream.flush()
            if stream.failure is not None:
                _silence(stream)


def _silence(stream: SteadyStream) -> None:
    """Let what is still buffered go nowhere, so that Python does not complain when it ends."""
    with suppress(*UNWRITABLE):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _open_missing() -> None:
    """Open standard streams that were closed; the next file would take their numbers."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:  # as Python leaves it
            mode = "w" if number else "r"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
