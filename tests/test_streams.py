"""Output never decides over a run: closed streams, pipes that end, full disks, old encodings."""

from __future__ import annotations

import errno
import io
import subprocess
import sys
from pathlib import Path

import pytest

from metaopt.cli import evaluate
from metaopt.cli.common import guarded
from metaopt.cli.streams import SteadyStream, steady

ROOT = Path(__file__).parents[1]


class Failing(io.StringIO):
    """A stream that fails after some characters."""

    def __init__(self, error: Exception, after: int = 0) -> None:
        super().__init__()
        self.error, self.left = error, after

    def write(self, text: str) -> int:
        self.left -= len(text)
        if self.left < 0:
            raise self.error
        return super().write(text)


FAILURES = [
    BrokenPipeError(errno.EPIPE, "Broken pipe"),
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EIO, "Input/output error"),
    ValueError("I/O operation on closed file"),
]


@pytest.mark.parametrize("error", FAILURES, ids=str)
def test_what_cannot_be_written_is_dropped_and_noted(error):
    inner = Failing(error, after=2)
    stream = SteadyStream(inner)
    for text in ("a", "b", "c", "d"):
        assert stream.write(text) == 1
    stream.flush()
    assert stream.failure is error
    assert inner.getvalue() == "ab"
    assert not stream.isatty()


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("utf-8", "a – 字 é"),
        ("latin-1", "a - \\u5b57 é"),
        ("cp1252", "a – \\u5b57 é"),
        ("cp437", "a - \\u5b57 é"),
        ("ascii", "a - \\u5b57 \\xe9"),
        ("gbk", "a – 字 é"),
    ],
)
@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_a_character_that_an_encoding_lacks_is_written_as_its_escape(encoding, errors, written):
    buffer = io.BytesIO()
    stream = SteadyStream(io.TextIOWrapper(buffer, encoding=encoding, errors=errors))
    print("a – 字 é", file=stream)
    stream.flush()
    assert stream.failure is None
    assert buffer.getvalue().decode(encoding).rstrip() == written


def test_bytes_of_a_path_that_are_no_text_are_written_as_escapes():
    buffer = io.BytesIO()
    stream = SteadyStream(io.TextIOWrapper(buffer, encoding="utf-8"))
    print("a\udcff", file=stream, flush=True)
    assert buffer.getvalue().split() == [b"a\\udcff"]


@pytest.mark.parametrize("error", FAILURES, ids=str)
@pytest.mark.parametrize("printed", [False, True])
def test_a_command_whose_output_is_lost_has_done_its_work(error, printed, monkeypatch, capsys):
    done = []

    def main(_):
        for part in ("a", "b", "c"):
            print(part)
            print(part, file=sys.stderr)
            done.append(part)

    monkeypatch.setattr(sys, "stdout", Failing(error, after=1))
    ended = isinstance(error, BrokenPipeError)
    assert guarded(main, printed=printed)() == (2 if printed and not ended else 0)
    assert done == ["a", "b", "c"]
    *shown, last = capsys.readouterr().err.splitlines()
    assert (last == "c") if ended else (error.args[-1] in last)
    assert len(shown) < 4
    monkeypatch.setattr(sys, "stderr", Failing(error))
    assert guarded(main)() == 0


def test_the_streams_are_as_before_afterwards():
    before = sys.stdout, sys.stderr
    with steady() as out:
        assert sys.stdout is out
        with steady() as again:
            assert again is out
        assert sys.stdout is out
    assert (sys.stdout, sys.stderr) == before


# What both scripts do, without the seconds that it takes to import torch.
PROGRAM = """
import runpy, sys
streams = runpy.run_path({path!r})
with streams["steady"]():
    with open("file", "w") as file:
        descriptor = file.fileno()
        print("x" * 100_000)
        print("y" * 100_000, file=sys.stderr, flush=True)
        file.write(str(descriptor))
"""


@pytest.mark.parametrize(
    "redirected", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "| true", "2>&1 | true"]
)
def test_a_process_whose_streams_are_closed_or_end_writes_its_file_and_ends_well(
    redirected, tmp_path
):
    (tmp_path / "program.py").write_text(PROGRAM.format(path=str(ROOT / "metaopt/cli/streams.py")))
    command = f"set -o pipefail; {sys.executable} program.py {redirected}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert set(done.stderr) <= {"y", "\n"}
    if redirected == "2>&-":
        assert not done.stdout, "whoever closes stderr wants to hear nothing"
    assert int((tmp_path / "file").read_text()) > 2


@pytest.mark.parametrize("error", [FAILURES[0], None], ids=str)
def test_an_evaluation_leaves_all_its_files_whatever_becomes_of_its_output(
    error, tmp_path, monkeypatch
):
    out = tmp_path / "字"
    failing = io.TextIOWrapper(io.BytesIO(), encoding="ascii") if error is None else Failing(error)
    arguments = ["--methods", "gd", "--problems", "2", "--steps", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "stdout", failing)
    monkeypatch.setattr(sys, "stderr", Failing(error or FAILURES[0]))
    assert guarded(lambda _: evaluate.main(arguments))() == 0
    names = {"results.jsonl", "manifest.json", "report.html", "loss.png"}
    assert names <= {path.name for path in out.iterdir()}
    if error is None:
        shown = failing.buffer.getvalue().decode("ascii")
        assert "u5b57/loss.png" in shown
        assert "  -  " in shown  # no invariance error
