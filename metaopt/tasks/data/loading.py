"""Load a data set by its name: find its folder and its files, and download what is missing."""

from __future__ import annotations

import os
from pathlib import Path

from metaopt.checks import check_choice
from metaopt.errors import UserError
from metaopt.storage import user_path
from metaopt.tasks.data.download import cache_folder, fetch
from metaopt.tasks.data.files import find
from metaopt.tasks.data.images import Dataset
from metaopt.tasks.data.table import DATASETS

VARIABLE = "METAOPT_DATA"


def load(name: str, data_dir: str | Path | None = None, download: bool = False) -> Dataset:
    """Load all images of a data set from its files, gzipped or not.

    Args:
        name: "mnist", "fashion-mnist" or "cifar10": a key of ``DATASETS``.
        data_dir: the folder of this data set. By default it is ``$METAOPT_DATA/NAME``; without
            that variable and with ``download``, a folder in the operating system's cache.
        download: whether to download files that are missing in that folder.

    Raises:
        UserError: for an unknown name, and for files that are missing or unusable.
    """
    check_choice("a data set", name, DATASETS)
    description = DATASETS[name]
    folder = _folder(name, data_dir, download)
    folders = (folder, folder / description.subfolder)
    if download:
        for source in description.downloads:
            if any(find(folders, file) is None for file in source.files):
                fetch(source, description, folder)
    found = {file: find(folders, file) for file in description.files}
    missing = [file for file, path in found.items() if path is None]
    if missing:
        raise UserError(
            f"expected the files of {name} in {str(folder)!r}, got none named "
            f"{', '.join(missing)}: name the folder that has them, or allow the download"
        )
    paths = {file: path for file, path in found.items() if path is not None}
    train, test = (
        description.read(
            [paths[file] for file in part.files],
            description.shape,
            description.classes,
            part.images,
        )
        for part in (description.train, description.test)
    )
    return Dataset(name, train, test)


def _folder(name: str, data_dir: str | Path | None, download: bool) -> Path:
    if data_dir is not None:
        return user_path(data_dir)
    if above := os.environ.get(VARIABLE):
        return user_path(above) / name
    if download:
        return cache_folder() / name
    raise UserError(
        f"expected a folder for {name}, got neither a data_dir nor the environment variable "
        f"{VARIABLE}: set one of them (--data-dir), or allow the download (--download)"
    )
