"""Paths that a config or a command line names: nothing is written but in ``--out``."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from checkpoint_fuzz_cases import WHOLE
from fuzz_cases import call, fuzzed, snapshot
from hypothesis import example, given
from hypothesis import strategies as st
from test_fuzz_config import TINY

from metaopt.cli import evaluate, train
from metaopt.storage import user_path

COMMANDS = pytest.mark.parametrize("module", [train, evaluate], ids=lambda m: m.__name__)
SENTINELS = ("mine", "a/mine", "a/b/mine", "a/b/c/mine", "a/b/c/results.jsonl", "a/other/mine")
PARTS = (
    "..", ".", "x", "a", "mine", "link", "gone", "file", "~", "$HOME", "-", "--", " ", "\\", "\0",
    "\n", "é", "\U0001f600", "n" * 255, "n" * 256, "results.jsonl", "last.safetensors", "%s", "*",
)  # fmt: skip
outs = st.lists(st.sampled_from(PARTS), min_size=1, max_size=4).map("/".join)


@pytest.fixture(autouse=True)
def _deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ``..`` leads to files that must stay; a chain of four cannot leave the folder."""
    below = tmp_path / "q/r/s/t"
    for sentinel in SENTINELS:
        place = below / sentinel
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(sentinel)
    (below / "a/b/c/link").symlink_to("../../other")
    (below / "a/b/c/gone").symlink_to("nowhere/at/all")
    (below / "a/b/c/file").write_text("a file")
    monkeypatch.chdir(below / "a/b/c")


def run_in(module: ModuleType, out: str, root: Path) -> None:
    """All that was there before is there after; what is new is in ``out``."""
    Path("config.yaml").write_text(yaml.safe_dump({"out": out}))
    before = snapshot(root)
    folder = None if "\0" in out else Path.cwd() / user_path(out)
    flags = TINY[module].split()
    code = call(module.main, [*flags, "--config", "config.yaml"], out=folder, git=True)
    after = snapshot(root)
    assert {name: after.get(name) for name in before} == before
    for name in after.keys() - before.keys():
        assert folder is not None
        assert (root / name).is_relative_to(os.path.realpath(folder))
        (root / name).unlink()
    assert code == 2 or folder is not None


@fuzzed(25, 400)
@given(out=outs)
@example(out="../../x")
@example(out="..")
@example(out="link/../y")
@example(out="gone")
@example(out="gone/../x")
@example(out="/dev/null/x")
@example(out="/proc/self/x")
@example(out="\0")
@example(out="n" * 5000)
@example(out="")
@COMMANDS
def test_out(module: ModuleType, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metaopt.evaluation.figure.loss_figure", lambda results, title: b"")
    run_in(module, out, tmp_path)


METHODS = (
    "</script><script>x", "<b>&'\"", "_x", "$x^{", "..", "...", "a\nb", "\x1b[31m", "-x", "%s{0}",
    "\u202e", "é" * 60, "CON", " ", "x@y", "*", "\\",
)  # fmt: skip


@pytest.mark.parametrize("folder", [".", "deep/er", "../other"])
def test_checkpoints_as_methods(folder: str, tmp_path: Path) -> None:
    """Their names are in the table, the picture, the page and TensorBoard's folders."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = [f"{folder}/{name}.safetensors" for name in METHODS if "/" not in name]
    for path in paths:
        Path(path).write_bytes(WHOLE)
    Path("config.yaml").write_text(yaml.safe_dump({"methods": ["gd", *paths]}))
    before = snapshot(tmp_path)
    out = Path.cwd() / "out"
    flags = [*TINY[evaluate].split()[2:], "--config", "config.yaml", "--tensorboard"]
    assert call(evaluate.main, [*flags, "--out", "out"], out=out, git=True) == 0
    after = snapshot(tmp_path)
    new = after.keys() - before.keys()
    assert {name: after.get(name) for name in before} == before
    assert all((tmp_path / name).is_relative_to(out) for name in new)
    curves = {path.parent for path in out.rglob("*tfevents*")}
    assert len(curves) == len(paths) + 1
    assert {path.parent for path in curves} == {out / "tensorboard"}


def test_a_method_that_looks_like_html_is_text_in_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "<script>x<!--\"'.safetensors"
    Path(name).write_bytes(WHOLE)
    Path("config.yaml").write_text(yaml.safe_dump({"methods": ["gd", name]}))
    flags = [*TINY[evaluate].split()[2:], "--config", "config.yaml", "--out", "out"]
    assert call(evaluate.main, flags, out=Path.cwd() / "out", git=True) == 0
    page = Path("out/report.html").read_text()
    assert name not in page
    assert "<script>x" not in page
    assert "<!--" not in page


@pytest.mark.parametrize("name", ["results.jsonl", "manifest.json", "loss.png", "report.html"])
def test_a_link_in_the_results_is_replaced_and_its_target_kept(name: str) -> None:
    Path("out").mkdir()
    Path("out", name).symlink_to(Path.cwd() / "mine")
    flags = [*TINY[evaluate].split(), "--out", "out", "--overwrite"]
    assert call(evaluate.main, flags, out=Path.cwd() / "out", git=True) == 0
    assert Path("mine").read_text() == "a/b/c/mine"
    assert not Path("out", name).is_symlink()


def test_overwriting_a_run_deletes_nothing_behind_a_link_to_its_curves() -> None:
    Path("out").mkdir()
    Path("out/tensorboard").symlink_to("../../../other")
    flags = [*TINY[train].split(), "--out", "out", "--overwrite"]
    assert call(train.main, flags, out=Path.cwd().parents[1]) == 0
    assert Path("../../other/mine").read_text() == "a/other/mine"
