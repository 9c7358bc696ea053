"""Results in one folder: what is replaced, what is removed, and what stays."""

from __future__ import annotations

import os
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from metaopt.cli import evaluate
from metaopt.errors import UserError
from metaopt.evaluation.curves import folder_names
from metaopt.learned.checkpoint import pretrained_path

SIZES = ["--samples", "4", "--input", "5", "--hidden", "3", "--output", "2"]


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longest."""
    for name in ("figure.loss_figure", "report.html_report"):
        monkeypatch.setattr(f"metaopt.evaluation.{name}", lambda *_: b"drawn")


def run_command(out: Path, *arguments: str) -> None:
    evaluate.main([*SIZES, "--steps", "2", "--problems", "2", "--out", str(out), *arguments])


NAMES = [
    "gd", "adam@0.1", "a/best.safetensors", "a_best.safetensors", "A_best.safetensors", "x/" * 400,
    "x/" * 399 + "y", "字" * 200, "é", "e\u0301", "a:b", "a?b", "con\x01", "\udcff", "..",
]  # fmt: skip


def test_every_method_has_a_folder_of_its_own_on_every_file_system(tmp_path: Path) -> None:
    folders = folder_names(NAMES)
    assert folders[:2] == NAMES[:2]
    assert len({unicodedata.normalize("NFKC", f).casefold() for f in folders}) == len(NAMES)
    assert folders == [
        dict(zip(NAMES[::-1], folder_names(NAMES[::-1]), strict=True))[n] for n in NAMES
    ]
    for folder in folders[:-1]:
        (tmp_path / folder).mkdir()
        assert len(os.fsencode(folder)) <= 150


def test_overwriting_removes_what_the_run_before_left_and_nothing_else(tmp_path: Path) -> None:
    checkpoint = tmp_path / ("n" * 200) / "best.safetensors"
    checkpoint.parent.mkdir()
    shutil.copy(pretrained_path("lstm_update"), checkpoint)
    out = tmp_path / "out"
    mine = [
        out / "mine.txt",
        out / "tensorboard/mine.txt",
        out / "tensorboard/mine/events.out.tfevents.1",
    ]
    mine += [out / "tensorboard/adam/notes.txt", out / ".results.jsonl.mine"]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    run_command(out, "--methods", f"gd,adam,{checkpoint}", "--tensorboard")
    curves = out / "tensorboard"
    assert len(list(curves.rglob("events.*"))) == 4
    run_command(out, "--methods", "gd", "--overwrite", "--tensorboard")
    assert [p.parent.name for p in curves.rglob("events.*") if p not in mine] == ["gd"]
    assert sorted(p.name for p in curves.iterdir()) == ["adam", "gd", "mine", "mine.txt"]
    run_command(out, "--redraw", "--tensorboard")  # once, not twice
    assert len(list((curves / "gd").iterdir())) == 1
    run_command(out, "--methods", "adam", "--overwrite")
    assert not (curves / "gd").exists()
    assert all(path.read_text() == "mine" for path in mine)


def test_a_run_that_fails_at_its_start_leaves_the_results_and_curves_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_command(tmp_path, "--methods", "gd", "--tensorboard")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fail(*_: Any, **__: Any) -> None:
        raise UserError("expected more")

    monkeypatch.setattr(evaluate, "evaluate", fail)
    with pytest.raises(UserError, match="expected more"):
        run_command(tmp_path, "--methods", "adam", "--overwrite", "--tensorboard")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["loss.png", "report.html", "manifest.json", "results.jsonl"])
def test_a_file_of_the_users_own_is_not_replaced_unasked(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"which holds {name}: add --overwrite"):
        run_command(tmp_path, "--methods", "gd")
    assert (tmp_path / name).read_text() == "mine"
