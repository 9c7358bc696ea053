"""Which tests run a line of the package, how long each takes, and running some of them in a child.

The child is forked from a process that has imported torch, so it starts in no time; it imports the
package anew, one module of it from another source.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_loader
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from coverage import CoverageData

ROOT = Path(__file__).parents[1]
SLOWEST = 4.0  # seconds of a test that is asked
ROUNDS = (1.0, 2.0, 3.0)  # seconds of tests that are asked one round after another
PATIENCE = 4.0  # times the seconds expected, and
STARTING = 40.0  # seconds, until a child is killed
MEMORY = 12 * 2**30  # bytes of a child
LATE = ("torch._dynamo", "torch.fx.experimental.symbolic_shapes", "matplotlib.pyplot")
"""What torch and others import when they are used first, which takes a second or more."""
SKIPPED = ("fuzz", "browser", "house", "docs", "tutorial", "examples", "benchmarks")


class Exchanged(SourceFileLoader):
    """Loads another source from the place of a file."""

    def __init__(self, name: str, path: Path, source: str) -> None:
        super().__init__(name, str(path))
        self.text = source

    def get_code(self, fullname: str) -> Any:
        """Compiled anew: nothing is written beside the file."""
        return compile(self.text, self.path, "exec", dont_inherit=True)


class Finder:
    """Finds one module, exchanged."""

    def __init__(self, path: Path, source: str) -> None:
        self.name = _module_name(path)
        self.path, self.source = path, source

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Of the one module."""
        if name != self.name:
            return None
        return spec_from_loader(name, Exchanged(name, self.path, self.source))


class Chosen:
    """A pytest plugin: these tests alone, in this order; keeps what each took, and what failed."""

    def __init__(self, tests: Sequence[str]) -> None:
        self.order = {test: index for index, test in enumerate(tests)}
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep, and sort."""
        kept = [item for item in items if item.nodeid in self.order]
        items[:] = sorted(kept, key=lambda item: self.order[item.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Time and outcome."""
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if not report.passed:
            self.failed.add(report.nodeid)


class Tests:
    """Of some source files.

    Args:
        out: where the measurements are kept.
    """

    def __init__(self, out: Path, paths: Iterable[Path]) -> None:
        _measure(out)
        data = CoverageData(basename=str(out / "coverage"))
        data.read()
        self.lines = {path: data.contexts_by_lineno(str(path)) for path in paths}
        every = {test for path in self.lines for test in self._of(path, None)}
        self.seconds = _times(out, sorted(every))

    def _of(self, path: Path, lines: tuple[int, int] | None) -> set[str]:
        by_line = self.lines[path]
        wanted = by_line if lines is None else range(lines[0], lines[1] + 1)
        contexts = {context for line in wanted for context in by_line.get(line, [])}
        tests = {context.rpartition("|")[0] for context in contexts}
        return {t for t in tests if t and not any(name in t.split("::")[0] for name in SKIPPED)}

    def rounds(self, path: Path, lines: tuple[int, int] | None) -> list[list[str]]:
        """Return groups of tests to run one after another for a change, the fastest first.

        A case of each test function in the file with the most of them; one of each in the other
        files; further cases.

        Args:
            path: the file that is changed.
            lines: of a statement; None for the whole file.
        """
        found = self._of(path, lines) & self.seconds.keys()
        tests = sorted(found, key=lambda test: (self.seconds[test], test))
        fastest: dict[str, str] = {}
        for test in tests:
            fastest.setdefault(test.partition("[")[0], test)
        cases = list(fastest.values())
        files = Counter(test.partition("::")[0] for test in sorted(cases))
        best = {f"{name}::" for name, _ in files.most_common(1)}
        first = [test for test in cases if any(map(test.startswith, best))]
        chosen: list[list[str]] = []
        for most, candidates in zip(ROUNDS, (first, cases, tests), strict=True):
            asked = {test for before in chosen for test in before}
            left = [test for test in candidates if test not in asked]
            ends = accumulate(self.seconds[test] for test in left)
            chosen.append(left[: max(1, sum(end <= most for end in ends))])
        return chosen

    def ask(self, tests: Sequence[str], path: Path, source: str, log: Path) -> bool | None:
        """Whether these tests pass with ``source`` in place of ``path``; None where it hangs."""

        def work() -> int:
            sys.meta_path.insert(0, Finder(path, source))
            return _run(tests, Chosen(tests), "-x", "--tb=line")

        spent = sum(self.seconds[test] for test in tests)
        status = _forked(work, STARTING + PATIENCE * spent, log)
        return None if status is None else status == 0


def warm_up() -> None:
    """Import all that the package imports, and forget the package alone."""
    for path in (ROOT / "metaopt").rglob("*.py"):
        importlib.import_module(_module_name(path))
    for name in LATE:
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] == "metaopt"]:
        del sys.modules[name]
    gc.freeze()  # what is here is not looked at again in each child


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _forked(work: Callable[[], int], limit: float, log: Path) -> int | None:
    """The exit status of ``work`` in a child; None where it took longer than ``limit`` seconds."""
    child = os.fork()
    if child == 0:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        status = 70
        try:
            status = work()
        except BaseException:  # a child must end here
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _run(tests: Sequence[str], plugin: Chosen, *flags: str) -> int:
    """Pytest in this process."""
    files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
    options = ["-q", "--assert=plain", "-p", "no:cacheprovider", *flags]
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    return int(pytest.main([*options, *files], plugins=[plugin]))


def _measure(out: Path) -> None:
    """Which test runs which line, into ``out``/coverage."""
    if (out / "coverage").exists():
        return
    skipped = [f"--ignore-glob=tests/*{name}*" for name in SKIPPED]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "--cov=metaopt", *skipped]
    partial = out / "coverage.partial"
    environment = os.environ | {"COVERAGE_FILE": str(partial)}
    subprocess.run([*command, "--cov-context=test", "--cov-report="], cwd=ROOT, env=environment)
    partial.rename(out / "coverage")


def _times(out: Path, tests: Sequence[str]) -> dict[str, float]:
    """Seconds of each that passes and is not slow."""
    kept = out / "seconds.json"
    known = json.loads(kept.read_text()) if kept.exists() else {}
    new = [test for test in tests if test not in known]

    def work() -> int:
        plugin = Chosen(new)
        _run(new, plugin)
        passed = {t: plugin.seconds.get(t) for t in new if t not in plugin.failed}
        kept.write_text(json.dumps(known | dict.fromkeys(new) | passed))
        return 0

    if new:
        _forked(work, 3600.0, out / "seconds.log")
    times: dict[str, float | None] = json.loads(kept.read_text())
    return {test: time for test, time in times.items() if time is not None and time <= SLOWEST}
