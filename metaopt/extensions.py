"""Extensions: modules of users that add methods and components to the tables when imported.

Such a module adds to a :class:`metaopt.registry.Registry`, for example ``UPDATE_RULES``, or calls
``metaopt.evaluation.register_method``. Before they read their other flags, both scripts import the
modules that ``--import`` names, and those that installed packages list under the entry point
``metaopt.extensions``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points

from metaopt.errors import UserError

GROUP = "metaopt.extensions"
"""The group of entry points, each of which names a module, or a function that is then called."""


def load_extensions(modules: Sequence[str] = ()) -> None:
    """Import the extensions of installed packages, then some modules.

    The current folder is searched last.

    Args:
        modules: dotted names of modules.

    Raises:
        UserError: if a module cannot be imported, or if it adds a name that is taken.
    """
    for entry in entry_points(group=GROUP):
        _import(f"the entry point {entry.name!r}", entry.load)
    if modules and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for module in modules:
        _import(f"the module {module!r}", partial(import_module, module))


def _import(asked: str, load: Callable[[], object]) -> None:
    try:
        load()
    except (Exception, SystemExit) as error:  # whatever the code of others raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"expected {asked[:80]} to be importable as an extension, got {reason[:150]}: mend or "
            "install it, or leave it out"
        ) from error
