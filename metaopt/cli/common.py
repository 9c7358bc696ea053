"""What both command lines share: flags, config files, and errors as one line with exit code 2."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NoReturn

import docstring_parser
import torch
from jsonargparse import ArgumentParser

from metaopt.checks import check_whole
from metaopt.cli.configs import MODE, read_config
from metaopt.cli.signals import ended_by_signals
from metaopt.cli.streams import steady
from metaopt.errors import LONGEST, Interrupted, UserError, cut, nearest, shown
from metaopt.extensions import load_extensions
from metaopt.extras import version
from metaopt.ranks import TIMEOUT
from metaopt.registry import Settings, defaults, field_types
from metaopt.storage import user_path

MOST_THREADS = 1024
SEE_HELP = ": see --help"
KINDS = {
    "'bool'": "true or false",
    "'int'": "a whole number",
    "'float'": "a number",
    "'str'": "a text",
}
"""Types as jsonargparse names them, in words."""
TOO_LARGE = "expected sizes that fit into memory, got larger ones: lower them"


class Parser(ArgumentParser):
    """A parser of flags and config files whose errors are a :class:`UserError` of one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, parser_mode=MODE, allow_abbrev=False, version=version(), **kwargs)

    def add_flag(self, name: str, default: Any, meaning: str, kind: Any = None) -> None:
        """Add a flag with a value.

        Args:
            name: the flag, with its dashes.
            default: the default.
            meaning: its help text.
            kind: the type of its values; by default that of the default.
        """
        self.add_argument(name, type=kind or type(default), default=default, help=meaning)

    def add_switch(self, name: str, meaning: str) -> None:
        """Add a flag without a value that is off by default; in a config file it is true or false.

        Args:
            name: the flag, with its dashes.
            meaning: its help text.
        """
        self.add_argument(name, type=bool, default=False, nargs="?", const=True, help=meaning)

    def add_run(self, out: str, content: str, timeout: float = TIMEOUT) -> None:
        """Add the flags that both scripts have: where and how they run.

        They are ``--config``, ``--out``, ``--import``, ``--threads``, ``--device``, which
        :func:`pick_device` takes, and ``--timeout``, which :func:`metaopt.launch.joined` takes.

        Args:
            out: the default of ``--out``.
            content: what is written into that folder, for the help text.
            timeout: the default of ``--timeout``, in seconds.
        """
        self.add_argument(
            "--config",
            action="config",
            help="read flags from a YAML file, by their names without dashes; flags that "
            "follow it win",
        )
        self.add_flag("--out", out, f"folder to write the {content} into")
        self.add_import()
        self.add_threads()
        self.add_flag(
            "--device",
            "cpu",
            "where to compute: cpu, cuda (the GPU of this process) or cuda:N (GPU number N)",
        )
        self.add_flag(
            "--timeout",
            timeout,
            "seconds to wait for the slowest process, where torchrun started several",
        )

    def add_import(self) -> None:
        """Add the flag ``--import``, which :func:`parse` reads."""
        self.add_flag(
            "--import",
            "",
            "dotted name of a Python module of your own to import first; it can add methods, "
            "update rules, actions and more; may be repeated",
            str | list[str],
        )

    def add_threads(self) -> None:
        """Add the flag ``--threads``, which :func:`set_threads` takes.

        The default is 1. A second thread gains little on tensors of this size, and makes a run a
        hundred times slower where another program uses the same core.
        """
        self.add_flag("--threads", 1, "CPU threads that torch uses; 0 lets torch choose")

    def add_settings(self, cls: type[Settings]) -> None:
        """Add a flag for each field of a config and of its components.

        The help texts are the descriptions of the fields in the docstrings.

        Args:
            cls: the config, such as ``TrainingSpec``.

        Raises:
            UserError: if a component's field has the name of another flag.
        """
        owners: dict[str, list[str]] = {}
        first: dict[str, type[Any]] = dict.fromkeys(cls.own_defaults(), cls)
        for kind, registry in cls.components.items():
            for name, config in registry.items():
                for field in defaults(config):
                    first.setdefault(field, config)
                    owners.setdefault(field, []).append(f"{kind}={name}")
        text = docstring_parser.parse(cls.__doc__ or "").short_description
        group = self.add_argument_group(f"{cls.__name__}: {text}")
        for name, default in cls.all_defaults().items():
            if f"--{name}" in self._option_string_actions:
                raise UserError(
                    f"expected fields of {first[name].__name__} with names of their own, got "
                    f"{name!r}, which is another flag: rename it"
                )
            meaning = _meanings(first[name]).get(name, "")
            if known := {**cls.components, **cls.named}.get(name):
                meaning += f" Choices: {', '.join(known)}."
            if first[name] is not cls:
                meaning += f" Used by {', '.join(owners[name])}."
            hint = field_types(first[name])[name]  # type: ignore[arg-type]
            group.add_argument(f"--{name}", type=hint, default=default, help=meaning)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a :class:`UserError` of one line, instead of a page of usage.

        Args:
            message: what is wrong.
            ex: the exception behind it, which is not shown.
        """
        line = " ".join(str(message).split()).removesuffix(SEE_HELP)
        line = line.removeprefix('Parser key "config": ')
        wrong = re.search(r'.*Parser key "([\w-]+)": (.*?)Got value: (.*)', line)
        if wrong:
            name, text, value = wrong.groups()
            kind = next((words for key, words in KINDS.items() if key in text), "another value")
            line = f"expected {kind} as {name}, got {cut(value)}"
        raise UserError(cut(line, LONGEST - len(SEE_HELP)) + SEE_HELP) from None

    def check_known(self, names: Sequence[str], keys: bool = False) -> None:
        """Check that this command has some flags.

        Args:
            names: the flags.
            keys: whether they are keys of a config, which have no dashes.

        Raises:
            UserError: for one that it has not; the message says which one may have been meant.
        """
        dashes = "" if keys else "--"
        flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
        known = [dashes + flag.removeprefix("--").removesuffix("+") for flag in flags]
        for name in names:
            if name.removesuffix("+") not in (*known, *self._option_string_actions):
                meant = nearest(name, known)
                raise UserError(
                    f"expected {'keys of a config' if keys else 'flags'} that this command has, "
                    f"got {shown(name)}: " + (f"did you mean {meant}?" if meant else "see --help")
                )

    def parse_args(  # type: ignore[override]
        self, args: Any = None, namespace: Any = None, **kwargs: Any
    ) -> Any:
        """Return the values of all flags; a ~ at the start of ``--out`` is the home folder.

        Args:
            args: the command line; None for that of the process.
            namespace: as for ``argparse``.
            **kwargs: as for ``jsonargparse``.

        Raises:
            UserError: for a flag or value that is not known, a null in a config file where a value
                is needed, or a string with a NUL character, which no path may have.
        """
        args = list(sys.argv[1:] if args is None else args)
        self.check_known([t.partition("=")[0] for t in args if re.match(r"--?[^\W\d]", t)])
        try:
            values = super().parse_args(args, namespace, **kwargs)
        except UserError:
            raise
        except (ValueError, RecursionError) as error:
            self.error(str(error))
        for name, value in values.items():
            if value is None and self.get_default(name) is not None:
                self.error(f"expected a value of {name}, got none: give one, or leave it out")
            if isinstance(value, str) and "\0" in value:
                self.error(f"expected {name} without a NUL character, got {shown(value)}")
        if "out" in values:
            values.out = str(user_path(values.out))
        return values


def _meanings(config: type[Any]) -> dict[str, str]:
    """Return the descriptions of a config's fields, from its docstring and those of its bases."""
    found: dict[str, str] = {}
    for cls in reversed(config.__mro__):
        found |= _described(cls.__doc__ or "")
    return found


@cache  # asked of each field of a config
def _described(docstring: str) -> dict[str, str]:
    """Return the descriptions of fields in a docstring."""
    found: dict[str, str] = {}
    for entry in docstring_parser.parse(docstring).params:
        for name in entry.arg_name.split(","):
            found[name.strip()] = " ".join((entry.description or "").split())
    return found


def parse(build: Callable[[], Parser], arguments: Sequence[str] | None) -> Any:
    """Import the extensions that a command line and its configs name, and parse it.

    The extensions come first, as the flags depend on what is registered.

    Args:
        build: returns the parser.
        arguments: the command line; None for that of the process.

    Returns:
        The values of all flags. That of ``--import`` is a list of all modules.

    Raises:
        UserError: if a module cannot be imported, or a flag, a key or a value cannot be used.
    """
    rest, configs, modules = _taken_apart(sys.argv[1:] if arguments is None else list(arguments))
    load_extensions(modules)
    parser = build()
    for config in configs:
        parser.check_known(list(config), keys=True)
    return parser.parse_args([*rest, f"--import={json.dumps(modules)}"])


def _taken_apart(arguments: list[str]) -> tuple[list[str], list[dict[str, Any]], list[str]]:
    """Return a command line with the texts of its configs, their values, and all modules."""
    rest: list[str] = []
    configs: list[dict[str, Any]] = []
    modules: list[str] = []
    while arguments:
        token = arguments.pop(0)
        flag, equals, value = token.partition("=")
        if flag not in ("--config", "--import", "--import+") or not (
            equals or (arguments and not arguments[0].startswith("--"))
        ):
            rest.append(token)  # of another flag, or without a value, as the parser will say
            continue
        value = value if equals else arguments.pop(0)
        if flag != "--config":
            modules.append(value)
            continue
        config, text = read_config(value)
        named = config.pop("import", [])
        for module in named if isinstance(named, list) else [named]:
            if not isinstance(module, str):
                raise UserError(
                    f"expected names of modules to import, got {shown(module)} in the config: "
                    "name some, or leave import out"
                )
            modules += [module] if module else []
        configs.append(config)
        rest.append(f"--config={text}")
    return rest, configs, modules


def guarded(
    main: Callable[[Sequence[str] | None], None], hint: str = "", printed: bool = False
) -> Callable[[], int]:
    """Return a main function as an entry point that reports errors in one line.

    A user's error ends with exit code 2, an interruption with 128 plus the number of the signal.
    Nobody reading stdout or stderr is no error.

    Args:
        main: the function; it is called with None, for the command line of the process.
        hint: ends the advice to run again, for a command that can go on where it was.
        printed: whether all that the command makes is what it prints.

    Returns:
        A function that returns the exit code.
    """

    def entry() -> int:
        with steady() as out:
            code = _code(main, hint)
            out.flush()
            if out.failure is None or isinstance(out.failure, BrokenPipeError):
                return code
            reason = getattr(out.failure, "strerror", None) or out.failure
            line = f"expected to print all of the output, got {reason}: redirect it elsewhere"
            return _complain(line) if printed else _say(line, code)

    return entry


def _code(main: Callable[[Sequence[str] | None], None], hint: str) -> int:
    """Run a command, and return its exit code."""
    try:
        with ended_by_signals():
            main(None)
    except UserError as error:
        return _complain(str(error))
    except OSError as error:
        place = f" {error.filename!r}" if error.filename else ""
        return _complain(
            f"expected to read and write files, got {error.strerror or error}{place}: mend that "
            f"and run again{hint}"
        )
    except MemoryError:
        return _complain(TOO_LARGE)
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        return _complain(TOO_LARGE)
    except KeyboardInterrupt:
        return _interrupted(signal.SIGINT, "", hint)
    except Interrupted as end:
        return _interrupted(end.signal, end.where, hint)
    return 0


def set_threads(threads: int) -> None:
    """Set the number of threads of torch.

    Args:
        threads: the number; 0 leaves torch's own choice.

    Raises:
        UserError: for a negative number, or one above 1024.
    """
    check_whole("threads", threads, 0, MOST_THREADS)
    if threads:
        torch.set_num_threads(threads)


def pick_device(name: str) -> torch.device:
    """Return the device of a name.

    Args:
        name: "cpu", "cuda" or "cuda:N". Where torchrun started several processes, "cuda" is the GPU
            of this process.

    Raises:
        UserError: if this machine has no device of that name.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(
            f"expected a --device of cpu, cuda or cuda:N, got {name!r}: name one"
        ) from None
    if device.type == "cpu":
        return device
    count = torch.cuda.device_count()
    if device.type != "cuda" or not torch.cuda.is_available():
        raise UserError(
            f"expected a --device that this torch can use, got {name!r} with {count} GPUs: use cpu"
        )
    index = device.index if device.index is not None else int(os.environ.get("LOCAL_RANK", "0"))
    if index >= count:
        raise UserError(f"expected one of {count} GPUs, got number {index}: start fewer processes")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def take(cls: type[Any], values: Any) -> Any:
    """Return a config built from the parsed values of its fields.

    Args:
        cls: a dataclass, or a subclass of ``Settings``.
        values: what the parser returned.
    """
    if issubclass(cls, Settings):
        own, held = cls.own_defaults(), cls.all_defaults()
        others = {name: _fixed(values[name]) for name in held if name not in own}
        return cls(others, **{name: _fixed(values[name]) for name in own})
    return cls(**{name: _fixed(values[name]) for name in cls.__dataclass_fields__})


def _fixed(value: Any) -> Any:
    """Return a list of a config file as a tuple, and anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


def _interrupted(number: int, where: str, hint: str) -> int:
    return _say(" ".join(f"interrupted {where}".split()) + f"; run again{hint}", 128 + number)


def _complain(line: str) -> int:
    return _say(f"error: {cut(' '.join(line.split()), LONGEST)}", 2)


def _say(line: str, code: int) -> int:
    print(line, file=sys.stderr)
    return code
