"""What the command lines share: one line for people when something is wrong, exit code 2."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from jsonargparse import ArgumentParser

from metaopt.cli.configs import MODE
from metaopt.cli.signals import ended_by_sigterm
from metaopt.errors import Interrupted, UserError
from metaopt.ranks import TIMEOUT

MOST_THREADS = 1024
TOO_LARGE = "expected sizes that fit into memory, got larger ones: lower them"


class Parser(ArgumentParser):
    """A parser whose complaints are a :class:`UserError` of one line instead of a usage page."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, parser_mode=MODE, **kwargs)

    def add_switch(self, name: str, meaning: str) -> None:
        """A flag without a value that is off by default; in a config file, true or false."""
        self.add_argument(name, type=bool, default=False, nargs="?", const=True, help=meaning)

    def add_threads(self) -> None:
        """``--threads``, for :func:`set_threads`.

        One by default: two gain little on tensors of this size, and lose a hundredfold where
        another program holds a core.
        """
        self.add_argument("--threads", type=int, default=1, help="of torch; 0: its own choice")

    def add_device(self) -> None:
        """``--device``, for :func:`pick_device`."""
        self.add_argument("--device", type=str, default="cpu", help="cpu, cuda or cuda:N")

    def add_timeout(self, seconds: float = TIMEOUT) -> None:
        """``--timeout``, for :func:`metaopt.launch.joined`."""
        self.add_argument(
            "--timeout",
            type=float,
            default=seconds,
            help="under torchrun: seconds to wait for the slowest process",
        )

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        line = " ".join(str(message).split())
        raise UserError(f"{line}; see --help") from None

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """None, which a config says by ``null``, is no value; a NUL is in no path."""
        try:
            values = super().parse_args(*args, **kwargs)
        except UserError:
            raise
        except (ValueError, RecursionError) as error:
            self.error(str(error))
        for name, value in values.items():
            if value is None and self.get_default(name) is not None:
                self.error(f"expected a value of {name}, got none: give one, or leave it out")
            if isinstance(value, str) and "\0" in value:
                self.error(f"expected {name} without a NUL character, got {value!r}")
        return values

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
            with ended_by_sigterm():
                main(None)
        except UserError as error:
            return _complain(" ".join(str(error).split()))
        except OSError as error:
            place = f" {error.filename!r}" if error.filename else ""
            return _complain(
                f"expected to read and write files, got {error.strerror or error}{place}: "
                f"mend that and run again{hint}"
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

    return entry


def set_threads(threads: int) -> None:
    """The number of threads of torch; 0 leaves its own choice."""
    if not 0 <= threads <= MOST_THREADS:
        raise UserError(
            f"expected threads of 0 to {MOST_THREADS}, got {threads}: 0 leaves it to torch"
        )
    if threads:
        torch.set_num_threads(threads)


def pick_device(name: str) -> torch.device:
    """The device of that name; "cuda" is that of this process, where torchrun started several.

    Raises:
        UserError: if this machine has none of that name.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"expected a --device of cpu, cuda or cuda:N, got {name!r}") from None
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
    """An instance of the dataclass ``cls`` from the parsed values of its fields."""
    fields = cls.__dataclass_fields__
    chosen = {name: values[name] for name in fields}
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in chosen.items()})


def _interrupted(number: int, where: str, hint: str) -> int:
    print(" ".join(f"interrupted {where}".split()) + f"; run again{hint}", file=sys.stderr)
    return 128 + number


def _complain(line: str) -> int:
    print(f"error: {line}", file=sys.stderr)
    return 2
