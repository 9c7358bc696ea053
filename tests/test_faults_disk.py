"""A disk that fills, a folder that cannot be written, a second run: one line, nothing lost."""

import os
import subprocess
import time

import pytest
from soak_cases import EVAL, FILES, FLAGS, TRAIN, contents, flags, start, train_here

from metaopt.cli import evaluate, train
from metaopt.learned.checkpoint import read_checkpoint
from metaopt.storage import locked

pytestmark = pytest.mark.soak
SMALL = ["--methods", "gd", "--problems", "2", "--steps", "3", "--out"]


def mount(folder, *options: str) -> None:
    folder.mkdir(exist_ok=True)
    command = ["mount", *options, str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs the command mount")
    if done.returncode:
        pytest.skip(f"needs the right to mount: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 kB."""
    folder = tmp_path / "disk"
    mount(folder, "-t", "tmpfs", "-o", "size=400k", "tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def ended(process: subprocess.Popen[str], seconds: float = 120) -> tuple[int, str]:
    """(exit code, last line of stderr); there must be no traceback."""
    errors = process.communicate(timeout=seconds)[1]
    assert "Traceback" not in errors
    return process.returncode, errors.splitlines()[-1] if errors else ""


def test_a_disk_that_fills_during_training_ends_it_in_a_line_and_it_goes_on_later(
    small_disk, tmp_path
):
    out = small_disk / "run"
    filler = small_disk / "filler"
    process = start(str(TRAIN), *flags(out))
    deadline = time.monotonic() + 60
    while not (out / FILES[0]).exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with filler.open("wb") as file:
        while True:  # to the last byte
            try:
                os.write(file.fileno(), b"x" * 512)
            except OSError:
                break
    code, line = ended(process)
    assert code == 2, line
    assert "No space left" in line
    assert "--resume" in line
    kept = read_checkpoint(out / FILES[0]).facts["trajectories"]
    assert 0 < kept < int(FLAGS["trajectories"])
    filler.unlink()
    train_here(out, "--resume")
    alone = tmp_path / "alone"
    train_here(alone)
    assert contents(out) == contents(alone)


def test_a_full_disk_keeps_the_results_that_were_there(small_disk):
    out = small_disk / "results"
    evaluate.main([*SMALL, str(out)])
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    (small_disk / "filler").write_bytes(b"x" * (os.statvfs(small_disk).f_bavail * 4096))
    code, line = ended(start(str(EVAL), *SMALL, str(out), "--steps", "50", "--overwrite"))
    assert (code, "No space left" in line) == (2, True), line
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


@pytest.mark.parametrize("script", [TRAIN, EVAL], ids=["train", "eval"])
def test_a_read_only_disk_is_named_in_a_line(small_disk, script):
    mount(small_disk, "-o", "remount,ro")
    arguments = flags(small_disk / "x") if script == TRAIN else [*SMALL, str(small_disk / "x")]
    code, line = ended(start(str(script), *arguments))
    assert code == 2
    assert "Read-only file system" in line
    assert str(small_disk / "x") in line


@pytest.mark.parametrize(
    ("script", "main"), [(TRAIN, train.main), (EVAL, evaluate.main)], ids=["train", "eval"]
)
def test_a_second_run_into_the_same_folder_is_refused_and_the_first_unharmed(
    tmp_path, script, main
):
    out = tmp_path / "run"
    arguments = flags(out, trajectories="8") if script == TRAIN else [*SMALL, str(out)]
    with locked(out):
        code, line = ended(start(str(script), *arguments))
        assert code == 2
        assert "which one does now" in line
        assert [p.name for p in out.iterdir()] == [".lock"]
    main(arguments)  # there is no other any more
    assert len(list(out.iterdir())) > 1
