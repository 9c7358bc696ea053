"""Optional packages: the library needs torch, numpy and safetensors, and extras add the rest."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec

from metaopt.errors import UserError, cut

DISTRIBUTION = "metaopt-teleport"
"""The name of this project on the package index, where ``metaopt`` is another project."""

SEARCHED_FOR_EXTENSIONS: set[str] = set()
"""Folders on ``sys.path`` for the sake of extensions alone."""


class MissingExtra(UserError, ImportError):
    """The error if an optional package is needed and cannot be imported; it names the extra."""


def version() -> str:
    """Return the version of this package."""
    found: str = import_module(__package__).__version__
    return found


def installed(package: str) -> bool:
    """Return whether a package can be found, without importing it.

    Args:
        package: its name when it is imported.
    """
    try:
        with _without_extensions():
            return find_spec(package) is not None
    except ImportError:  # of an import hook that refuses it
        return False


@contextmanager
def _without_extensions() -> Iterator[None]:
    """Hide folders of extensions: a user's own scipy.py is no scipy."""
    hidden = [folder for folder in sys.path if folder in SEARCHED_FOR_EXTENSIONS]
    sys.path[:] = [folder for folder in sys.path if folder not in hidden]
    try:
        yield
    finally:
        sys.path += hidden


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Import optional packages inside this context, which names the extra of a missing one.

    Args:
        name: the extra, as in ``pip install 'metaopt-teleport[train]'``.

    Raises:
        MissingExtra: if a package is not installed, or cannot be imported.

    Example:
        >>> with extra("report"):
        ...     import no_such_package
        Traceback (most recent call last):
        metaopt.extras.MissingExtra: expected the extra 'report', got no package no_such_package: \
pip install 'metaopt-teleport[report]'
    """
    try:
        with _without_extensions():
            yield
    except UserError:
        raise
    except (ImportError, OSError, ValueError) as error:  # the last two of its own config files
        package = (getattr(error, "name", None) or "").partition(".")[0]
        if package == "metaopt":
            raise
        absent = isinstance(error, ModuleNotFoundError) and package
        reason = cut(" ".join(str(error).split()), 120)
        found = f"no package {package}" if absent else f"one that cannot be imported ({reason})"
        raise MissingExtra(
            f"expected the extra {name!r}, got {found}: pip install '{DISTRIBUTION}[{name}]'"
        ) from error
