"""What all fuzz tests share: hostile values, and a cage that code under test must not leave.

The contract: a :class:`UserError` or success, within ten seconds, no code of a file is run, and
nothing is written but where it was allowed.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from hypothesis import settings
from hypothesis import strategies as st

from metaopt import UserError
from metaopt.cli.common import guarded

LIMIT = 10  # seconds that one example may take
MEMORY = 2**31  # bytes that it may map more than there were
SOAK = os.environ.get("METAOPT_FUZZ") == "soak"

COMMANDS = {
    "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.spawn", "pty.spawn",
    "subprocess.Popen", "pickle.find_class", "webbrowser.open", "urllib.Request",
    "shutil.unpack_archive",
}  # fmt: skip
CODE = {"exec", "compile", "import", "marshal.loads", "code.__new__", "ctypes.dlopen"}
CHANGES = {
    "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate",
    "os.chmod", "os.chown", "shutil.rmtree", "shutil.move", "shutil.copyfile",
}  # fmt: skip
TEMPORARY = Path(tempfile.gettempdir()).resolve()
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
HOST = "socket.gethostname"  # TensorBoard names its files after it


def fuzzed(ci: int, soak: int) -> settings:
    """As many examples of a test, by profile; see conftest.py."""
    profile = settings.get_profile("soak" if SOAK else "ci")
    return settings(profile, max_examples=soak if SOAK else ci)


class Cage:
    """What Python's audit hook saw while code under test ran."""

    def __init__(self) -> None:
        self.cases = 0
        self.watching = False
        self.commands: list[str] = []
        self.code: list[str] = []
        self.written: list[Path] = []
        self.base = Path()

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.watching:
            return
        if event in COMMANDS or (event.startswith("socket.") and event != HOST):
            self.commands.append(f"{event} {arguments!r:.200}")
        elif event in CODE:
            self.code.append(f"{event} {arguments!r:.200}")
        elif event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITING:
                self._wrote(path)
        elif event in CHANGES:
            two = event in {"os.rename", "os.link", "os.symlink"}
            paths, folders = arguments[: 1 + two], arguments[-1 - two :]
            if event.startswith("os.") and all(isinstance(f, int) and f > 2 for f in folders):
                return  # names in a folder that is open: of a tree whose removal is noted
            for path in paths:
                self._wrote(path)

    def _wrote(self, path: object) -> None:
        if isinstance(path, str | bytes | os.PathLike):
            self.written.append(self.base / os.fsdecode(path))

    @contextmanager
    def watch(
        self, *, out: Path | None = None, code: bool = True, git: bool = False
    ) -> Iterator[None]:
        """Assert what the code inside did.

        Args:
            out: the only folder in which it may write; without one it may not write.
            code: whether it may import and compile, as a first use of a library does.
            git: whether it may ask git for the revision.
        """
        self.cases += 1
        self.base = Path.cwd()
        self.commands, self.code, self.written = [], [], []
        before = signal.signal(signal.SIGALRM, _too_long)
        limits = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (_mapped() + MEMORY, limits[1]))
        signal.setitimer(signal.ITIMER_REAL, LIMIT)
        self.watching = True
        try:
            yield
        finally:
            self.watching = False
            resource.setrlimit(resource.RLIMIT_AS, limits)
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        commands = [c for c in self.commands if not (git and "subprocess.Popen ('git'" in c)]
        assert not commands
        assert code or not self.code
        strays = [p for p in self.written if not _allowed(p, out)]
        assert not strays


def _mapped() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def _too_long(number: int, frame: FrameType | None) -> None:
    raise AssertionError(f"still running after {LIMIT} s")


def _allowed(path: Path, out: Path | None) -> bool:
    if path == Path(os.devnull) or "__pycache__" in path.parts:
        return True
    if path.name.startswith("torchinductor_"):  # torch's own cache, made when it is imported
        return True
    if out is None:
        return False
    if path in (out, *out.parents):  # as it was said: what is made on the way to it
        return True
    place = Path(os.path.realpath(path.parent), path.name)
    below = place.relative_to(TEMPORARY).parts[:1] if place.is_relative_to(TEMPORARY) else ()
    if below and below[0].startswith(tempfile.gettempprefix()):
        return True  # of the tempfile module, which removes it
    roots = (Path(os.path.normpath(out)), Path(os.path.realpath(out)))
    return any(place.is_relative_to(r) or r.is_relative_to(place) for r in roots)


CAGE = Cage()
sys.addaudithook(CAGE.hook)


class Outcome(NamedTuple):
    """What a call gave, or the line by which it was refused."""

    value: Any = None
    complaint: str | None = None


def attempt(call: Callable[[], Any], *others: type[Exception], **allowed: Any) -> Outcome:
    """Call it in the cage; it may raise UserError, and ``others`` where they are documented."""
    with CAGE.watch(**allowed):
        try:
            return Outcome(call())
        except UserError as error:
            complaint = str(error)
        except others as error:
            complaint = type(error).__name__
    assert "\n" not in complaint
    return Outcome(complaint=complaint)


def call(main: Callable[[list[str]], None], arguments: list[str], **allowed: Any) -> int:
    """A command line as its entry point runs it, in the cage: 0, or 2 for a complaint."""
    explains = any(a.startswith(("-h", "--h", "--print")) for a in arguments)
    with CAGE.watch(**allowed):
        try:
            status = guarded(lambda _: main(arguments))()
        except SystemExit as end:
            status = end.code if explains else f"ended by {end!r}"
    assert status in {0, 2}
    assert isinstance(status, int)
    return status


def snapshot(folder: Path) -> dict[str, bytes | str]:
    """All files and links below a folder."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


SPECIAL = (0, -1, 2**31, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63), 0.0, -0.0, 1e-320, 1e308)
NOT_FINITE = (float("nan"), float("inf"), float("-inf"))
TEXTS = (
    "", " ", "0", "null", "nan", "~", "a" * 5000, "\0", "a\0b", "../../x", "{", "[1", "&a *a",
    "!!x", "\u202e", "\x1b[31m", "%s{0}$x^{", "-1", "--help ", "é", "\U0001f600", "__class__", "@",
    "gd@",
)  # fmt: skip

small = st.integers(-3, 3)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    small,
    st.sampled_from(SPECIAL + NOT_FINITE),
    st.floats(),
    st.sampled_from(TEXTS),
    st.text(max_size=8),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
"""What JSON and YAML can say."""


@st.composite
def mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file with a few bytes changed, cut out, doubled or put in; or cut off."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        kind = draw(st.sampled_from(("flip", "set", "cut", "insert", "double", "truncate")))
        end = min(len(content), at + draw(st.integers(1, 40)))
        if kind == "flip" and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set" and content:
            content[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del content[at:end]
        elif kind == "insert":
            content[at:at] = draw(st.binary(max_size=9))
        elif kind == "double":
            content[at:at] = content[at:end]
        else:
            del content[at:]
    return bytes(content)
