"""Open data files that may be missing, damaged or hostile, with one kind of error for all."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from metaopt.errors import UserError
from metaopt.storage import is_file

GZIP = b"\x1f\x8b"  # no IDX file and no CIFAR file starts with it


def unusable(expected: str, got: str, path: Path) -> UserError:
    """Return the error for a file whose content is not what it should be.

    Args:
        expected: what the file should have.
        got: what it has.
        path: the file.
    """
    return UserError(f"expected {expected}, got {got} in {str(path)!r}: take another copy of it")


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader | gzip.GzipFile]:
    """Open a file for reading bytes, decompressed if it is gzipped, for a ``with`` block.

    Whether a file is gzipped is told by its content and not by its name.

    Yields:
        A binary file.

    Raises:
        UserError: here or in the block, if the file cannot be read or decompressed.
    """
    try:
        with path.open("rb") as file:
            if file.peek(2)[:2] == GZIP:
                with gzip.open(file) as decompressed:
                    yield decompressed
            else:
                yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise unusable("a whole gzip file", type(error).__name__, path) from None
    except OSError as error:
        raise UserError(
            f"expected a file that can be read, got {error.strerror or error} for {str(path)!r}: "
            f"check the file and its permissions"
        ) from None


def find(folders: Sequence[Path], name: str) -> Path | None:
    """Return the first file of a name, or of that name with ``.gz``, in a list of folders.

    Args:
        folders: in the order in which they are searched.
        name: the name of the file.

    Returns:
        Its path; None where there is none.
    """
    places = (folder / file for folder in folders for file in (name, f"{name}.gz"))
    return next((path for path in places if is_file(path)), None)
