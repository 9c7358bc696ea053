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

from metaopt.errors import UserError, cut, shown, unknown
from metaopt.extras import SEARCHED_FOR_EXTENSIONS
from metaopt.registry import all_or_nothing, built

GROUP = "metaopt.extensions"
"""The group of entry points, each of which names a module, or a function that is then called."""


def load_extensions(modules: Sequence[str] = ()) -> None:
    """Import the extensions of installed packages, then some modules.

    The current folder is searched last, and for the extensions alone: a file in it is never taken
    for an optional package of metaopt that is not installed. One that cannot be imported leaves
    nothing registered.

    Args:
        modules: dotted names of modules.

    Raises:
        UserError: if a module cannot be imported, or if it adds a name that is taken.
    """
    for entry in entry_points(group=GROUP):
        _import(f"the entry point {shown(entry.name)}", entry.module, entry.load)
    folder = os.getcwd()
    if modules and folder not in sys.path:
        sys.path.append(folder)
        SEARCHED_FOR_EXTENSIONS.add(folder)
    for module in modules:
        _import(f"the module {shown(module)}", module, partial(import_module, module))


def load_named(text: str) -> object:
    """Import a module and return what it has under a name; a class is built without arguments.

    Args:
        text: "package.module:Name". The current folder is searched last.

    Raises:
        UserError: if the module cannot be imported or has no such name, or if the class cannot be
            built.
    """
    module, colon, name = text.partition(":")
    if not (module and colon and name):
        raise UserError(
            f"expected package.module:Name, got {shown(text)}: name the module, a colon and a class"
        )
    load_extensions([module])
    found = getattr(sys.modules[module], name, None)
    if found is None:
        names = [key for key, value in vars(sys.modules[module]).items() if isinstance(value, type)]
        raise UserError(unknown(f"a class of {cut(module, 60)}", name, names, "name one"))
    return built(shown(text), object, found) if isinstance(found, type) else found


def _import(asked: str, module: str, load: Callable[[], object]) -> None:
    before = set(sys.modules)
    try:
        with all_or_nothing():
            load()
    except (Exception, SystemExit) as error:  # whatever the code of others raises
        package = module.partition(".")[0]
        for name in set(sys.modules) - before:  # so that a second try registers all of it
            if name.partition(".")[0] == package:
                del sys.modules[name]
        reason = cut(" ".join(f"{type(error).__name__}: {error}".split()), 130)
        raise UserError(
            f"expected {asked} to be importable as an extension, got {reason}: mend or install it, "
            "or leave it out"
        ) from error
