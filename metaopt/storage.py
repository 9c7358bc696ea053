"""Files that are whole or not there, and folders that one process writes at a time."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from metaopt.errors import UserError
from metaopt.extras import extra

LOCK = ".lock"


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` whole, or leave it as it was.

    Raises:
        OSError: as the file system gives it, for example when the disk is full.
    """
    write_together({path: data})


def write_together(files: Mapping[Path, bytes], keep: Mapping[Path, Path] | None = None) -> None:
    """Replace files of one folder, each whole, once all of them have been written.

    Args:
        keep: the name that what was at a path gets.

    Raises:
        OSError: as the file system gives it; all files are as they were then, unless it lets
            only some of them be replaced.
    """
    temporaries: dict[Path, str] = {}
    try:
        for path, data in files.items():
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            temporaries[path] = temporary
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
        for path, previous in (keep or {}).items():
            keep_previous(path, previous)
        for path, temporary in temporaries.items():
            os.replace(temporary, path)
    except BaseException:
        for temporary in temporaries.values():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        raise
    for folder in {path.parent for path in files}:
        sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last, where the system can."""
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_file(path: Path) -> bool:
    """Whether there is a file; none has a name that is too long for the system."""
    try:
        return path.is_file()
    except OSError:
        return False


def keep_previous(path: Path, previous: Path) -> None:
    """Give the file at ``path`` the name ``previous`` as well, in the place of what has it.

    A kill at any moment leaves both names on whole files. Without a file at ``path``, nothing.
    """
    if not path.exists():
        return
    aside = previous.with_name(f".{previous.name}.link")
    aside.unlink(missing_ok=True)
    try:
        os.link(path, aside)
    except OSError:  # a file system without links
        write_atomically(previous, path.read_bytes())
    else:
        os.replace(aside, previous)
        aside.unlink(missing_ok=True)  # which stays where both names were of one file already


def remove_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Delete what killed writes of these files have left beside them."""
    for name in names:
        for stale in folder.glob(f".{name}.*"):
            stale.unlink()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for this process; the system lets go of it when the process dies.

    Raises:
        UserError: if another process holds it, or without the extra ``train``.
    """
    with extra("train"):
        from filelock import FileLock, Timeout
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except NotImplementedError:
        raise UserError(
            f"expected an --out on a file system with locks, got {str(folder)!r} on one without: "
            f"choose another"
        ) from None
    except Timeout:
        raise UserError(
            f"expected an --out that no other run writes, got {str(folder)!r}, which one does "
            f"now: wait for it, or choose another"
        ) from None
    try:
        yield
    finally:
        lock.release()
