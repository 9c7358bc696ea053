"""Download data sets by pooch, which gives a file its name once its checksum is right."""

from __future__ import annotations

import sys
import tarfile
import zlib
from importlib import import_module
from pathlib import Path
from types import ModuleType

from metaopt.errors import UserError
from metaopt.tasks.data.table import Description, Download


def cache_folder() -> Path:
    """Return the operating system's folder for caches, where downloads go by default.

    Raises:
        UserError: if pooch is not installed.
    """
    return Path(_pooch().os_cache("metaopt"))


def fetch(download: Download, description: Description, folder: Path) -> None:
    """Download a file into a folder, and unpack it there if it is an archive.

    Args:
        download: the file, its checksum and what it has.
        description: the data set that it belongs to.
        folder: where the data set lives.

    Raises:
        UserError: if it cannot be downloaded, is another file than it should be, or cannot be
            written.
    """
    pooch = _pooch()
    members = [f"{description.subfolder}/{name}" for name in download.files]
    try:
        pooch.retrieve(
            download.url,
            f"sha256:{download.sha256}",
            fname=download.url.rsplit("/", 1)[1],
            path=folder,
            processor=pooch.Untar(members, extract_dir=".") if download.archive else None,
            progressbar=sys.stderr.isatty(),
        )
    except (OSError, ValueError, EOFError, tarfile.TarError, zlib.error) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"expected to download {download.url} into {str(folder)!r}, got "
            f"{type(error).__name__} ({reason}): try again, or put the file there by hand"
        ) from None


def _pooch() -> ModuleType:
    try:
        return import_module("pooch")
    except ImportError:
        raise UserError(
            "expected the package pooch, of the extra 'studies', to download data, got none: "
            "pip install pooch, or name a folder that has the files"
        ) from None
