"""Download data sets by pooch, which gives a file its name once its checksum is right."""

from __future__ import annotations

import sys
import tarfile
import zlib
from pathlib import Path

from metaopt.errors import LONGEST, UserError, cut
from metaopt.extras import extra
from metaopt.tasks.data.table import Description, Download


def cache_folder() -> Path:
    """Return the operating system's folder for caches, where downloads go by default.

    Raises:
        MissingExtra: if pooch is not installed.
    """
    with extra("studies"):
        import pooch
    return Path(pooch.os_cache("metaopt"))


def fetch(download: Download, description: Description, folder: Path) -> None:
    """Download a file into a folder, and unpack it there if it is an archive.

    Args:
        download: the file, its checksum and what it has.
        description: the data set that it belongs to.
        folder: where the data set lives.

    Raises:
        MissingExtra: if pooch is not installed.
        UserError: if it cannot be downloaded, is another file than it should be, or cannot be
            written.
    """
    with extra("studies"):
        import pooch
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
        reason = cut(" ".join(str(error).split()), 250)
        raise UserError(
            f"expected to download {download.url} into {cut(str(folder), 150)!r}, got "
            f"{type(error).__name__} ({reason}): try again, or put the file there by hand",
            longest=2 * LONGEST,
        ) from None
