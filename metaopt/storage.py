"""Write files so that a kill never leaves half of one, and lock folders against a second writer."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from metaopt.errors import UserError
from metaopt.extras import extra

LOCK = ".lock"
TEMPORARY = ".tmp"
"""How the names of temporary files end."""


def user_path(path: str | Path) -> Path:
    """Return a path that a user gave; a ~ at its start is the home folder.

    Args:
        path: the path.
    """
    return Path(os.path.expanduser(path))


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that at any moment it holds all of its old or all of its new content.

    Args:
        path: the file; its folder must exist.
        data: the new content.

    Raises:
        OSError: from the file system, for example when the disk is full.
    """
    write_together({path: data})


def write_together(files: Mapping[Path, bytes], keep: Mapping[Path, Path] | None = None) -> None:
    """Replace several files, none of them before the new content of all is on disk.

    Who may read and write them is as the process's umask says.

    Args:
        files: new contents by path; the folders must exist.
        keep: for a path, another path under which its old content stays.

    Raises:
        OSError: from the file system. All files are then as they were, unless it let only some
            of them be replaced.
    """
    temporaries: dict[Path, Path] = {}
    try:
        for path, data in files.items():
            temporaries[path] = _beside(path, secrets.token_hex(8))
            with open(temporaries[path], "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for path, previous in (keep or {}).items():
            keep_previous(path, previous)
        for path, temporary in temporaries.items():
            os.replace(temporary, path)
    except BaseException:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)
        raise
    for folder in {path.parent for path in files}:
        sync_folder(folder)


def _beside(path: Path, part: str) -> Path:
    """Return the path of a temporary file beside another; its name is never too long."""
    name = os.fsencode(path.name)[:100].decode(errors="ignore")
    return path.with_name(f".{name}.{part}{TEMPORARY}")


def sync_folder(folder: Path) -> None:
    """Write the names of a folder's files to disk, so that they outlast a power failure.

    On Windows, which cannot do so, this does nothing.
    """
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_file(path: Path) -> bool:
    """Return whether there is a file; False for a name too long for the system."""
    try:
        return path.is_file()
    except OSError:
        return False


def keep_previous(path: Path, previous: Path) -> None:
    """Keep the content of ``path`` under the name ``previous`` too, replacing what was there.

    A kill at any moment leaves whole files under both names. If there is no file at ``path``, this
    does nothing.
    """
    if not path.exists():
        return
    aside = _beside(previous, "link")
    aside.unlink(missing_ok=True)
    try:
        os.link(path, aside)
    except OSError:  # a file system without links
        write_atomically(previous, path.read_bytes())
    else:
        os.replace(aside, previous)
        aside.unlink(missing_ok=True)  # which stays where both names were of one file already


def remove_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Delete the temporary files that killed writes have left in a folder.

    Args:
        folder: where to look.
        names: the names of the files that were being written.
    """
    for name in names:
        for stale in folder.glob(glob.escape(_beside(Path(name), "").stem) + "*" + TEMPORARY):
            stale.unlink()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder for the length of a ``with`` block, so that no second run writes into it.

    The operating system releases the lock when the process dies.

    Args:
        folder: made if it does not exist.

    Raises:
        UserError: if another process has locked it, if its file system has no locks, or without
            the extra ``train``.
    """
    with extra("train"):
        from filelock import FileLock, Timeout
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    path.touch()
    lock = FileLock(path, mode=stat.S_IMODE(path.stat().st_mode))  # the umask's
    try:
        lock.acquire(timeout=0)
    except NotImplementedError:
        raise UserError(
            f"expected an --out on a file system with locks, got {str(folder)!r} on one without: "
            "choose another"
        ) from None
    except Timeout:
        raise UserError(
            f"expected an --out that no other run writes, got {str(folder)!r}, which one does "
            "now: wait for it, or choose another"
        ) from None
    try:
        yield
    finally:
        lock.release()
