"""The texts of the suite: the sources of Python's standard library, and its help pages.

Both come with the running Python, so they depend on its version; :func:`text_digest` says which.
"""

from __future__ import annotations

import hashlib
import sysconfig
import zlib
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from metaopt.errors import UserError

CHARACTERS = 96
"""Printable ASCII and the end of a line; all others are read as "?"."""

END = 95  # of a line; a tab counts as a space

_CODES = torch.full((256,), ord("?") - 32, dtype=torch.uint8)
_CODES[32:127] = torch.arange(95, dtype=torch.uint8)
_CODES[10], _CODES[9] = END, 0

Sources = dict[str, str]
"""Texts by name."""


def sources() -> Sources:
    """Read the modules of the standard library that are one file, by name.

    Raises:
        UserError: if this Python has no sources.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    found = {path.name: _read(path) for path in sorted(folder.glob("*.py"))}
    if len(found) < 50:
        raise UserError(
            f"expected the sources of the standard library in {str(folder)!r}, got {len(found)} "
            "files: take a Python that is installed with them"
        )
    return found


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def help_pages() -> Sources:
    """Read the help pages of Python's language reference, English prose, by topic.

    Raises:
        UserError: if this Python has none.
    """
    try:
        topics: Sources = import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise UserError(
            "expected the module pydoc_data of the standard library, got none: take a Python that "
            "is installed with it"
        ) from error
    return {name: topics[name] for name in sorted(topics)}


def split_of(name: str) -> str:
    """Return the split of a text, so that each file is in one alone: a tenth each is held out.

    Args:
        name: of the file or the topic.
    """
    return {0: "validation", 1: "test"}.get(zlib.crc32(name.encode()) % 10, "train")


@cache
def source_text() -> dict[str, Tensor]:
    """Return the characters of the standard library's sources in each split, uint8 ``(n,)``."""
    return _encoded(sources())


@cache
def help_text() -> dict[str, Tensor]:
    """Return the characters of Python's help pages in each split, uint8 ``(n,)``."""
    return _encoded(help_pages())


def _encoded(texts: Sources) -> dict[str, Tensor]:
    parts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for name, text in texts.items():
        parts[split_of(name)].append(text)
    return {split: encoded(own) for split, own in parts.items()}


def encoded(texts: Iterable[str]) -> Tensor:
    """Return texts as numbers of characters, uint8 ``(n,)``.

    Args:
        texts: joined by the end of a line.
    """
    content = bytearray("\n".join(texts).encode("ascii", errors="replace"))
    return _CODES[torch.frombuffer(content, dtype=torch.uint8).long()]


@cache
def text_digest() -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of both texts."""
    digest = hashlib.sha256()
    for text in (source_text(), help_text()):
        for split in sorted(text):
            digest.update(text[split].numpy().tobytes())
    return digest.hexdigest()[:16]
