"""Components by name, and the flat config that holds their fields.

A component is one choice in a config, such as an update rule, an estimator or a task distribution.
It is registered by a frozen dataclass of its own fields, which checks itself and says what the
component can do. :class:`Settings` is the flat config that users see, and that checkpoints hold:
the names of the chosen components, and the fields of all of them, each under its own name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, ClassVar, Self, TypeVar, get_type_hints

from metaopt.errors import UserError, cut, shown, unknown

Entry = TypeVar("Entry")
Config = TypeVar("Config")
Built = TypeVar("Built")

LIBRARY = __name__.partition(".")[0]
SETTINGS = "settings"


class UnknownComponent(UserError):
    """The error for a name that nothing is registered under; an extension may be missing.

    Attributes:
        kind: what was asked for, such as "update".
        name: the unknown name, shortened.
    """

    def __init__(self, kind: str, name: object, known: Sequence[str]) -> None:
        self.kind, self.name = kind, shown(name)
        line = unknown(kind, name, known, "name one.")
        super().__init__(f"{line} Else --import the module that registers it")


class Registry(dict[str, Entry]):
    """A dictionary of components of one kind by name, whose errors are made for users.

    Asking for an unknown name raises a :class:`UserError` that lists the known ones. A name that is
    taken is not given to another component; delete it first.

    Args:
        kind: the flag, and the key of a config, whose values are these names.
        accepts: says whether a component is one of this kind.

    Example:
        >>> losses = Registry("loss")
        >>> losses.add("square", lambda error: error**2)
        >>> losses["squares"]
        Traceback (most recent call last):
        ...
        metaopt.registry.UnknownComponent: expected loss of square, got 'squares': did you mean \
square? Else --import the module that registers it
    """

    def __init__(self, kind: str, accepts: Callable[[Any], bool] = callable) -> None:
        super().__init__()
        self.kind, self.accepts = kind, accepts
        _ALL.append(self)

    def __missing__(self, name: str) -> Entry:
        raise UnknownComponent(self.kind, name, list(self))

    def __setitem__(self, name: str, entry: Entry) -> None:
        if not (isinstance(name, str) and name.isidentifier()):
            raise UserError(
                f"expected a name of letters, digits and underscores for a {self.kind}, got "
                f"{shown(name)}: choose another"
            )
        if name in self:
            raise UserError(
                f"expected a new name for a {self.kind}, got {shown(name)}, which is taken: choose "
                "another, or delete it first"
            )
        if not self.accepts(entry):
            raise UserError(
                f"expected a component for the {self.kind} {shown(name)}, got {shown(entry)}: "
                "register its class or function"
            )
        super().__setitem__(name, entry)

    def update(self, *others: Any, **more: Entry) -> None:
        """Register components under new names."""
        for name, entry in dict(*others, **more).items():
            self[name] = entry

    def __ior__(self, others: Any) -> Self:  # type: ignore[override,misc]
        self.update(others)
        return self

    def setdefault(self, name: str, entry: Any = None) -> Entry:
        """Return the component of a name; register this one if the name is new."""
        if name not in self:
            self[name] = entry
        return self[name]

    def add(self, name: str, entry: Entry) -> None:
        """Register a component under a new name.

        Args:
            name: letters, digits and underscores, not a digit first.
            entry: the component.

        Raises:
            UserError: if the name is taken, or is not a name, or if the entry is no component.
        """
        self[name] = entry

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Return a decorator that registers a class or a function under a new name.

        Args:
            name: see :meth:`add`.

        Raises:
            UserError: if the name is taken, or is not a name.
        """

        def decorate(entry: Entry) -> Entry:
            self.add(name, entry)
            return entry

        return decorate


_ALL: list[Registry[Any]] = []


@contextmanager
def all_or_nothing() -> Iterator[None]:
    """Forget what was registered inside this context, in all registries, if it raises."""
    before = [(registry, dict(registry)) for registry in _ALL]
    try:
        yield
    except BaseException:
        for registry, entries in before:
            registry.clear()
            registry.update(entries)
        raise


def built(what: str, kind: type[Built], make: Callable[[], object]) -> Built:
    """Return what an extension makes; its mistakes become a :class:`UserError` that names it.

    Args:
        what: what is made, with its name, such as "the update rule 'sign'".
        kind: the class that it must be of.
        make: makes it.

    Raises:
        UserError: if it cannot be made, or is of another class.
    """
    try:
        made = make()
    except (UserError, MemoryError):
        raise
    except Exception as error:  # whatever the code of others raises
        reason = cut(" ".join(f"{type(error).__name__}: {error}".split()), 150)
        raise UserError(f"expected to build {cut(what, 80)}, got {reason}: mend it") from error
    if not isinstance(made, kind):
        raise UserError(
            f"expected {cut(what, 80)} to be a {kind.__name__}, got {shown(made)}: mend what "
            "builds it"
        )
    return made


def defaults(config: type[Any]) -> dict[str, Any]:
    """Return the fields of a config with their defaults.

    Args:
        config: a frozen dataclass.

    Raises:
        UserError: if it is not a frozen dataclass, or if a field has no default.
    """
    if not (is_dataclass(config) and config.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        raise UserError(
            "expected a frozen dataclass of a component's fields, got "
            f"{cut(getattr(config, '__name__', repr(config)))}: decorate it with "
            "@dataclass(frozen=True)"
        )
    return {f.name: _default(config, f) for f in fields(config)}


def _default(config: type[Any], of: Field[Any]) -> Any:
    if of.default is not MISSING:
        return of.default
    if of.default_factory is not MISSING:
        return of.default_factory()
    raise UserError(
        f"expected a default of every field of {config.__name__}, got none of {of.name}: give one"
    )


@cache
def field_types(config: type[Any]) -> dict[str, Any]:
    """Return the types of a config's fields.

    Args:
        config: a frozen dataclass.

    Raises:
        UserError: if a type cannot be found, such as one imported for type checkers alone.
    """
    try:
        return get_type_hints(config)
    except Exception as error:  # whatever the annotations of others raise
        raise UserError(
            f"expected types of the fields of {cut(config.__name__)} that can be found, got "
            f"{cut(str(error), 120)}: import them in its module"
        ) from error


def merged(configs: Sequence[type[Any]]) -> dict[str, Any]:
    """Return the fields of several configs with their defaults; fields of one name are one field.

    Args:
        configs: frozen dataclasses.

    Raises:
        UserError: if two configs give a field different defaults or types.
    """
    together: dict[str, Any] = {}
    types: dict[str, Any] = {}
    for config in configs:
        for name, default in defaults(config).items():
            kind = field_types(config)[name]  # type: ignore[arg-type]
            before = together.setdefault(name, default), types.setdefault(name, kind)
            if before != (default, kind):
                raise UserError(
                    f"expected {_described(*before)} of the shared field {shown(name)}, got "
                    f"{_described(default, kind)} in {cut(config.__name__)}: use it, or rename the "
                    "field"
                )
    return together


def _described(default: object, kind: object) -> str:
    return f"the default {shown(default)} and the type {cut(getattr(kind, '__name__', str(kind)))}"


@dataclass(frozen=True, init=False, repr=False)
class Settings:
    """A flat config: its own fields, and the fields of its components.

    A subclass declares its own fields and the registries of its components. All fields are read as
    attributes, given as keywords, and changed by :func:`dataclasses.replace`.

    Attributes:
        components: names of own fields that choose a component, with the registry of each.
        named: names of own fields that choose an entry without fields, with the registry of each.
        unused: fields that may have any value where no chosen component has them.
        settings: fields of the library's components, and of the chosen ones, by name.
    """

    components: ClassVar[Mapping[str, Registry[Any]]] = {}
    named: ClassVar[Mapping[str, Registry[Any]]] = {}
    unused: ClassVar[frozenset[str]] = frozenset()
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __init__(self, settings: Mapping[str, Any] | None = None, **given: Any) -> None:
        own = self.own_defaults()
        for name, default in own.items():
            object.__setattr__(self, name, given.pop(name, default))
        held = merged([type(self), *self._held()])
        known = {k: v for k, v in held.items() if k not in own and k != SETTINGS}
        if others := sorted(given.keys() - known.keys()):
            raise UserError(
                f"expected fields of {type(self).__name__} and of its components, got "
                f"{shown(others[0])}: leave it out"
            )
        before = {name: value for name, value in (settings or {}).items() if name in known}
        object.__setattr__(self, "settings", known | before | given)
        self._check_components()
        self.check()

    def check(self) -> None:
        """Check the fields that belong to no component.

        Raises:
            UserError: for a value that cannot be used.
        """

    @classmethod
    def own_defaults(cls) -> dict[str, Any]:
        """Return the fields that belong to no component, with their defaults."""
        return {name: value for name, value in defaults(cls).items() if name != SETTINGS}

    @classmethod
    def all_defaults(cls) -> dict[str, Any]:
        """Return all fields with their defaults, those of all registered components included."""
        registered = [c for registry in cls.components.values() for c in registry.values()]
        return {k: v for k, v in merged([cls, *registered]).items() if k != SETTINGS}

    @classmethod
    def from_dict(cls, flat: Mapping[str, Any]) -> Self:
        """Return the config of a dictionary that :meth:`as_dict` made; lists become tuples.

        Args:
            flat: values by the name of the field.
        """
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in flat.items()}
        if SETTINGS in values:
            raise UserError(f"expected fields of {cls.__name__}, got {SETTINGS!r}: leave it out")
        return cls(None, **values)

    def as_dict(self) -> dict[str, Any]:
        """Return all fields by name, as numbers, strings and lists, ready for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in self._flat().items()}

    def chosen(self, registry: Registry[type[Config]], name: str) -> Config:
        """Return the config of a chosen component, with its fields as they are set here.

        Args:
            registry: the registry of the component.
            name: its name.
        """
        config, flat = registry[name], self._flat()
        return built(
            f"the {registry.kind} {shown(name)}",
            config,
            lambda: config(**{key: flat[key] for key in defaults(config)}),
        )

    def __getattr__(self, name: str) -> Any:
        held = self.__dict__.get("settings", {})  # none yet while this is unpickled
        if name not in held:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return held[name]

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self._flat().items())
        return f"{type(self).__name__}({shown})"

    def _flat(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.own_defaults()} | dict(self.settings)

    def _held(self) -> Iterator[type[Any]]:
        """Yield the configs whose fields are stored: all of the library's, and the chosen ones."""
        for kind, registry in self.components.items():
            chosen = registry[getattr(self, kind)]
            yield from (c for c in registry.values() if c is chosen or of_library(c))

    def _check_components(self) -> None:
        """Build the chosen configs; most fields of others need values that some config accepts."""
        used = set(self.own_defaults())
        for kind, registry in self.components.items():
            used |= defaults(type(self.chosen(registry, getattr(self, kind)))).keys()
        for name in self.settings.keys() - used - self.unused:
            complaints = [
                _complaint(config, name, self.settings[name])
                for config in self._held()
                if name in defaults(config)
            ]
            if first := complaints[0] if all(complaints) else None:
                raise first


def _complaint(config: type[Any], name: str, value: Any) -> UserError | None:
    """Return a config's error for one value of a field, with the others at their defaults."""
    try:
        built(f"the config {config.__name__}", config, lambda: config(**{name: value}))
    except UserError as error:
        return error
    return None


def of_library(component: type[Any]) -> bool:
    """Return whether a class is one of the library's own.

    Args:
        component: the class.
    """
    return component.__module__.partition(".")[0] == LIBRARY
