"""What the command lines share: one line for people when something is wrong, exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from jsonargparse import ArgumentParser

from metaopt.errors import UserError


class Parser(ArgumentParser):
    """A parser whose complaints are a :class:`UserError` of one line instead of a usage page."""

    def add_switch(self, name: str, meaning: str) -> None:
        """A flag without a value that is off by default; in a config file, true or false."""
        self.add_argument(name, type=bool, default=False, nargs="?", const=True, help=meaning)

    def add_threads(self) -> None:
        """``--threads``, for :func:`set_threads`.

        One by default: two gain little on tensors of this size, and lose a hundredfold where
        another program holds a core.
        """
        self.add_argument("--threads", type=int, default=1, help="of torch; 0: its own choice")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        line = " ".join(str(message).split())
        raise UserError(f"{line}; see --help") from None

    def parse_path(self, cfg_path: Any, *args: Any, **kwargs: Any) -> Any:
        """A config file that is no text is a complaint too."""
        try:
            return super().parse_path(cfg_path, *args, **kwargs)
        except UnicodeDecodeError:
            self.error(f"expected a config in UTF-8 text, got {str(cfg_path)!r}")


def guarded(main: Callable[[Sequence[str] | None], None], hint: str = "") -> Callable[[], int]:
    """``main`` as an entry point: its errors for people become one line on stderr, exit code 2.

    Args:
        hint: ends the advice to run again, for a command that can go on where it was.
    """

    def entry() -> int:
        try:
            main(None)
        except UserError as error:
            return _complain(" ".join(str(error).split()))
        except OSError as error:
            place = f" {error.filename!r}" if error.filename else ""
            return _complain(
                f"expected to read and write files, got {error.strerror or error}{place}: "
                f"mend that and run again{hint}"
            )
        except RuntimeError as error:
            if "allocate memory" not in str(error):
                raise
            return _complain("expected sizes that fit into memory, got larger ones: lower them")
        except KeyboardInterrupt:
            print(f"interrupted; run again{hint}", file=sys.stderr)
            return 130
        return 0

    return entry


def set_threads(threads: int) -> None:
    """The number of threads of torch; 0 leaves its own choice."""
    if threads < 0:
        raise UserError(f"expected threads of 0 or more, got {threads}: 0 leaves it to torch")
    if threads:
        torch.set_num_threads(threads)


def take(cls: type[Any], values: Any) -> Any:
    """An instance of the dataclass ``cls`` from the parsed values of its fields."""
    fields = cls.__dataclass_fields__
    chosen = {name: values[name] for name in fields}
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in chosen.items()})


def _complain(line: str) -> int:
    print(f"error: {line}", file=sys.stderr)
    return 2
