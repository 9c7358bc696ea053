"""Components by name, and the flat record of their fields that configs and checkpoints hold.

A component is one choice of a config: an update rule, an estimator, a distribution of tasks. It is
registered beside its class by a frozen dataclass of its own fields, which checks itself and says
what the component can do. :class:`Settings` is the flat view that users see: the names of the
chosen components and the fields of all, each under its own name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Self, TypeVar

from metaopt.errors import UserError

Entry = TypeVar("Entry")
Config = TypeVar("Config")

LIBRARY = __name__.partition(".")[0]
SETTINGS = "settings"


class UnknownComponent(UserError):
    """A name that nothing is registered under; an extension may be missing.

    Attributes:
        kind: what was asked for, such as "update".
        name: the unknown name, shortened.
    """

    def __init__(self, kind: str, name: object, known: Sequence[str]) -> None:
        self.kind, self.name = kind, _short(name)
        super().__init__(
            f"expected {kind} of {', '.join(known)}, got {self.name}: name one of these, or "
            "--import the module that registers it"
        )


class Registry(dict[str, Entry]):
    """Components of one kind by name. Asking for an unknown name raises a :class:`UserError`.

    Args:
        kind: the flag, and the key of a config, that names one.

    Example:
        >>> colours = Registry[int]("colour")
        >>> colours.add("red", 0xFF0000)
        >>> colours["blue"]
        Traceback (most recent call last):
        ...
        metaopt.registry.UnknownComponent: expected colour of red, got 'blue': name one of these, \
or --import the module that registers it
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def __missing__(self, name: str) -> Entry:
        raise UnknownComponent(self.kind, name, list(self))

    def add(self, name: str, entry: Entry) -> None:
        """Register an entry.

        Raises:
            UserError: if the name is taken, or is no name.
        """
        if not (isinstance(name, str) and name.isidentifier()):
            raise UserError(
                f"expected a name of letters, digits and underscores for a {self.kind}, got "
                f"{_short(name)}: choose another"
            )
        if name in self:
            raise UserError(
                f"expected a new name for a {self.kind}, got {name!r}, which is taken: choose "
                "another"
            )
        self[name] = entry

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Register the decorated class.

        Raises:
            UserError: as :meth:`add`.
        """

        def decorate(entry: Entry) -> Entry:
            self.add(name, entry)
            return entry

        return decorate


def defaults(config: type[Any]) -> dict[str, Any]:
    """The fields of a config with their defaults.

    Raises:
        UserError: if it is no frozen dataclass, or a field has no default.
    """
    if not (is_dataclass(config) and config.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        raise UserError(
            f"expected a frozen dataclass of a component's fields, got {config.__name__}: "
            "decorate it with @dataclass(frozen=True)"
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


def merged(configs: Sequence[type[Any]]) -> dict[str, Any]:
    """The fields of several configs with their defaults. Fields of one name are one field.

    Raises:
        UserError: where two configs give a field different defaults.
    """
    together: dict[str, Any] = {}
    for config in configs:
        for name, default in defaults(config).items():
            if name in together and together[name] != default:
                raise UserError(
                    f"expected the default {together[name]!r} of the shared field {name!r}, got "
                    f"{default!r} in {config.__name__}: use it, or rename the field"
                )
            together[name] = default
    return together


@dataclass(frozen=True, init=False, repr=False)
class Settings:
    """The flat view of a config: its own fields, and those of its components.

    A subclass declares its own fields and names the registries of its components. All fields are
    read as attributes, given as keywords, and changed by :func:`dataclasses.replace`.

    Attributes:
        components: own fields that name a component, with the registry of each.
        named: further own fields that name an entry of a registry, which has no fields.
        settings: fields of the library's components, and of the chosen ones, by name.
    """

    components: ClassVar[Mapping[str, Registry[Any]]] = {}
    named: ClassVar[Mapping[str, Registry[Any]]] = {}
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __init__(self, settings: Mapping[str, Any] | None = None, **given: Any) -> None:
        own = self.own_defaults()
        for name, default in own.items():
            object.__setattr__(self, name, given.pop(name, default))
        held = merged([type(self), *self._held()])
        known = {k: v for k, v in held.items() if k not in own and k != SETTINGS}
        if unknown := sorted(given.keys() - known.keys()):
            raise UserError(
                f"expected fields of {type(self).__name__} and of its components, got "
                f"{_short(unknown[0])}: leave it out"
            )
        before = {name: value for name, value in (settings or {}).items() if name in known}
        object.__setattr__(self, "settings", known | before | given)
        self._check_components()
        self.check()

    def check(self) -> None:
        """Check the fields of one's own.

        Raises:
            UserError: for a value that cannot be used.
        """

    @classmethod
    def own_defaults(cls) -> dict[str, Any]:
        """The fields that belong to no component, with their defaults."""
        return {name: value for name, value in defaults(cls).items() if name != SETTINGS}

    @classmethod
    def all_defaults(cls) -> dict[str, Any]:
        """The fields of one's own and of all registered components, with their defaults."""
        registered = [c for registry in cls.components.values() for c in registry.values()]
        return {k: v for k, v in merged([cls, *registered]).items() if k != SETTINGS}

    @classmethod
    def from_dict(cls, flat: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`as_dict`; lists become tuples."""
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in flat.items()}
        if SETTINGS in values:
            raise UserError(f"expected fields of {cls.__name__}, got {SETTINGS!r}: leave it out")
        return cls(None, **values)

    def as_dict(self) -> dict[str, Any]:
        """All fields, in plain lists and numbers, for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in self._flat().items()}

    def chosen(self, registry: Registry[type[Config]], name: str) -> Config:
        """The config of a component, of the fields here."""
        config, flat = registry[name], self._flat()
        return config(**{name: flat[name] for name in defaults(config)})

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
        """Configs whose fields are held: of the library whatever is chosen, else the chosen."""
        for kind, registry in self.components.items():
            chosen = registry[getattr(self, kind)]
            yield from (c for c in registry.values() if c is chosen or _of_library(c))

    def _check_components(self) -> None:
        """Build the chosen configs; a field of others must be one that some config takes."""
        used = set(self.own_defaults())
        for kind, registry in self.components.items():
            used |= defaults(type(self.chosen(registry, getattr(self, kind)))).keys()
        for name in self.settings.keys() - used:
            complaints = [
                _complaint(config, name, self.settings[name])
                for config in self._held()
                if name in defaults(config)
            ]
            if first := complaints[0] if all(complaints) else None:
                raise first


def _complaint(config: type[Any], name: str, value: Any) -> UserError | None:
    """What a config says against a value of one field, the others as by default."""
    try:
        config(**{name: value})
    except UserError as error:
        return error
    return None


def _of_library(config: type[Any]) -> bool:
    return config.__module__.partition(".")[0] == LIBRARY


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
