"""Extensions: modules of others that add components and methods to the tables when imported.

A module adds to a :class:`metaopt.registry.Registry`, for example ``UPDATE_RULES``, or calls
``metaopt.evaluation.methods.register_method``. Both scripts import the modules that ``--import``
names, and those of installed packages that stand under the entry point ``metaopt.extensions``,
before they read their other flags.
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
"""The group of entry points that name a module, or a function that is called."""


def load_extensions(modules: Sequence[str] = ()) -> None:
    """Import the installed extensions, then these modules; the current folder is searched last.

    Raises:
        UserError: if a module cannot be imported, or adds a name that is taken.
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
