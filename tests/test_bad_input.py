"""Bad input: exit code 2, one line on stderr that names it, and nothing earlier is lost."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from metaopt.cli import evaluate, train
from metaopt.cli.common import guarded
from metaopt.learned.checkpoint import (
    checkpoint_bytes,
    meta_tensors,
    pretrained_path,
    read_checkpoint,
    save_meta_optimizer,
)
from metaopt.learned.meta_optimizer import MetaOptimizer, MetaOptimizerSpec
from metaopt.storage import LOCK

torch.set_num_threads(1)  # the tensors are tiny; more threads only wait for one another

ROOT = Path(__file__).parents[1]
SIZES = "--samples 3 --input 4 --hidden 3 --output 2"
EVAL = f"--methods gd --problems 2 --steps 2 {SIZES} --out out".split()
BUDGET = "--trajectories 3 --batch_size 1 --steps 2 --window 2 --widths [3]"
VALIDATION = (
    "--validation_at [1] --validation_problems 1 --validation_every 1 --validation_families []"
)
TRAIN = f"{BUDGET} {VALIDATION} --hidden 3 --layers 1 --out out".split()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command line that must fail, and gives its one line of complaint."""

    def run(command: ModuleType, *arguments: str) -> str:
        capsys.readouterr()
        assert call(command, *arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        *progress, line = captured.err.splitlines()
        assert all(said.startswith("evaluated ") for said in progress)
        assert line.startswith("error: ")
        assert "Traceback" not in line
        return line

    return run


def call(command: ModuleType, *arguments: str) -> int:
    """A command line in this process, as its entry point runs it; later flags win."""
    defaults = EVAL if command is evaluate else TRAIN
    hint = getattr(command, "HINT", "")
    return guarded(lambda _: command.main([*defaults, *arguments]), hint)()


def snapshot(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != LOCK)
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def no_space_after(monkeypatch: pytest.MonkeyPatch, syncs: int) -> None:
    """The disk is full from the ``syncs``-th synchronisation on."""
    done = [0]

    def fsync(descriptor: int) -> None:
        done[0] += 1
        if done[0] > syncs:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize(
    ("command", "arguments", "named"),
    [
        (evaluate, "--methods adamm", "'adamm'"),
        (evaluate, "--methods gd,adam@x", "'adam@x'"),
        (evaluate, "--methods lstm_update@0.1", "'lstm_update@0.1'"),
        (evaluate, "--methods gone.safetensors", "gone.safetensors"),
        (evaluate, "--steps 0", "--steps"),
        (evaluate, "--steps x", "steps"),
        (evaluate, "--problems 0", "got 0"),
        (evaluate, "--seeds abc", "'abc'"),
        (evaluate, "--seeds 1,,2", "'1,,2'"),
        (evaluate, "--seeds -1", "-1"),
        (evaluate, "--seeds 3,1000000", "1000000"),
        (evaluate, "--hidden 0", "hidden of 1 to"),
        (evaluate, "--hidden 2.5", "2.5"),
        (evaluate, "--dtype float16", "'float16'"),
        (evaluate, "--threads -1", "threads"),
        (evaluate, "--loss foo", "'foo'"),
        (evaluate, "--unknown 3", "--unknown"),
        (evaluate, "stray", "stray"),
        (evaluate, "--config gone.yaml", "gone.yaml"),
        (train, "--config gone.yaml", "gone.yaml"),
        (train, "--hidden -1", "hidden"),
        (train, "--layers 0", "layers"),
        (train, "--batch_size -3", "batch_size"),
        (train, "--widths [8,-2]", "-2"),
        (train, "--steps 0", "steps"),
        (train, "--trajectories -5", "trajectories"),
        (train, "--update foo", "'foo'"),
        (train, "--element foo", "'foo'"),
        (train, "--action foo", "'foo'"),
        (train, "--action rescaling", "'rescaling'"),
        (train, "--heads [free,foo]", "foo"),
        (train, "--features [foo]", "foo"),
        (train, "--learning_rate_update 0", "learning_rate_update"),
        (train, "--learning_rate_element -1e-3", "learning_rate_element"),
        (train, "--clip -1", "clip"),
        (train, "--seed -1", "seed"),
        (train, "--unknown 3", "--unknown"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_bad_flag_is_named(
    complaint: Callable[..., str], command: ModuleType, arguments: str, named: str
) -> None:
    assert named in complaint(command, *arguments.split())
    assert not any(Path("out").glob("*"))


SHIPPED = pretrained_path("lstm_update").read_bytes()
SPEC = MetaOptimizerSpec(hidden=5, layers=1, element="none").as_dict()
TENSORS = meta_tensors(MetaOptimizer(MetaOptimizerSpec.from_dict(SPEC)))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (SHIPPED[:-100], "truncated"),
        (SHIPPED[:-5] + bytes([SHIPPED[-5] ^ 1]) + SHIPPED[-4:], "damaged"),
        (b"hello", "no checkpoint"),
        (b"", "no checkpoint"),
        (checkpoint_bytes(TENSORS, {"spec": {**SPEC, "hidden": 6}}), "size mismatch"),
        (checkpoint_bytes(TENSORS, {"spec": {**SPEC, "colour": 3}}), "colour"),
        (checkpoint_bytes(TENSORS, {"spec": SPEC, "version": 977}), "977"),
        (checkpoint_bytes(TENSORS, {}), "spec"),
    ],
    ids=["truncated", "one bit", "text", "empty", "shape", "field", "version", "no spec"],
)
def test_eval_says_why_a_checkpoint_is_unusable(
    complaint: Callable[..., str], content: bytes, named: str
) -> None:
    Path("bad.safetensors").write_bytes(content)
    line = complaint(evaluate, "--methods", "gd,bad.safetensors")
    assert named in line
    assert "bad.safetensors" in line


def test_eval_says_that_a_flat_checkpoint_fits_other_problems(
    complaint: Callable[..., str],
) -> None:
    spec = MetaOptimizerSpec(update="flat", element="none", flat_widths=(9, 9, 9), layers=1)
    save_meta_optimizer(Path("flat.safetensors"), MetaOptimizer(spec), {})
    line = complaint(evaluate, "--methods", "gd,flat.safetensors")
    assert "162 weights" in line
    assert "18" in line
    assert not Path("out/results.jsonl").exists()


def test_eval_leaves_earlier_results_alone_unless_told(complaint: Callable[..., str]) -> None:
    assert call(evaluate) == 0
    before = snapshot(Path("out"))
    assert set(before) == {"results.jsonl", "manifest.json", "loss.png", "report.html"}
    line = complaint(evaluate, "--methods", "adam")
    assert "'out'" in line
    assert "--overwrite" in line
    assert snapshot(Path("out")) == before
    assert call(evaluate, "--methods", "adam", "--overwrite") == 0
    assert snapshot(Path("out"))["results.jsonl"] != before["results.jsonl"]


@pytest.mark.parametrize("command", [evaluate, train])
@pytest.mark.parametrize("out", ["file", "file/below"])
def test_an_out_that_is_a_file_is_named_and_kept(
    complaint: Callable[..., str], command: ModuleType, out: str
) -> None:
    Path("file").write_text("mine")
    assert repr(out) in complaint(command, "--out", out)
    assert Path("file").read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b"colour: 3\n", "colour"),
        (b"hidden: many\n", "many"),
        (b"widths: 3.5\n", "widths"),
        (b"a: [1,\n b: }{\n", "config"),
        (b"just words\n", "just words"),
        (b"\xff\xfe\x00\x01", "bad.yaml"),
    ],
    ids=["unknown key", "wrong type", "wrong list", "no YAML", "a sentence", "no text"],
)
def test_train_says_what_is_wrong_with_a_config(
    complaint: Callable[..., str], text: bytes, named: str
) -> None:
    Path("bad.yaml").write_bytes(text)
    assert named in complaint(train, "--config", "bad.yaml")
    assert not Path("out").exists()


def test_train_leaves_an_earlier_run_alone_unless_told(complaint: Callable[..., str]) -> None:
    assert call(train) == 0
    before = snapshot(Path("out"))
    assert {"last.safetensors", "best.safetensors"} <= set(before)
    line = complaint(train)
    assert "--resume" in line
    assert "--overwrite" in line
    assert "hidden" in complaint(train, "--resume", "--hidden", "4")  # of another config
    assert snapshot(Path("out")) == before


@pytest.mark.parametrize("syncs", [0, 2, 5])
def test_eval_on_a_full_disk_says_so_and_loses_no_earlier_file(
    complaint: Callable[..., str], monkeypatch: pytest.MonkeyPatch, syncs: int
) -> None:
    assert call(evaluate) == 0
    before = snapshot(Path("out"))
    with monkeypatch.context() as patch:
        no_space_after(patch, syncs)
        assert "No space left" in complaint(evaluate, "--methods", "adam", "--overwrite")
    after = snapshot(Path("out"))
    kept = {"results.previous.jsonl", "manifest.previous.json"}
    assert set(after) - kept == set(before)  # no half-written file beside them
    assert all(after.values())
    if syncs == 0:
        assert after == before


@pytest.mark.parametrize("syncs", [0, 4, 6])
def test_train_on_a_full_disk_says_so_and_resumes_as_if_nothing_had_been(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, syncs: int
) -> None:
    assert call(train, "--out", "whole") == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        no_space_after(patch, syncs)
        assert call(train) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "No space left" in error.splitlines()[-1]  # above it stands the progress bar
    assert "--resume" in error.splitlines()[-1]
    assert [p.name for p in Path("out").glob(".*")] == [LOCK]
    if syncs:
        kept = read_checkpoint("out/last.safetensors").facts["trajectories"]
        assert kept == {4: 1, 6: 2}[syncs]
    assert call(train, "--resume") == 0
    for name in ("last.safetensors", "best.safetensors"):
        assert Path("out", name).read_bytes() == Path("whole", name).read_bytes()


def start(*command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=120, env=environment
    )


@pytest.mark.parametrize("script", ["train_meta.py", "eval_meta.py"])
def test_the_script_explains_itself(script: str) -> None:
    done = start(str(ROOT / script), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: {script}" in done.stdout
    assert "--out" in done.stdout


def test_the_script_answers_bad_input_with_one_line() -> None:
    done = start(str(ROOT / "eval_meta.py"), *EVAL, "--methods", "adamm")
    assert (done.returncode, done.stdout) == (2, "")
    *progress, line = done.stderr.splitlines()
    assert all(said.startswith("evaluated ") for said in progress)
    assert line.startswith("error: ")
    assert "'adamm'" in line


LIMITED = """
import resource, sys
from metaopt.cli.evaluate import entry
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
sys.exit(entry())
"""


def test_a_real_limit_on_file_size_loses_no_earlier_results() -> None:
    assert call(evaluate) == 0
    before = snapshot(Path("out"))
    done = start("-c", LIMITED, *EVAL, "--methods", "adam", "--overwrite")
    assert (done.returncode, done.stdout) == (2, "")
    *progress, line = done.stderr.splitlines()
    assert all(said.startswith("evaluated ") for said in progress)
    assert "File too large" in line
    assert snapshot(Path("out")) == before
