"""The rules of the house: who imports whom, examples that run, and no trace of a machine."""

from __future__ import annotations

import doctest
import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).parents[1]
LIBRARY, STUDIES = (sorted((ROOT / name).rglob("*.py")) for name in ("metaopt", "studies"))
MACHINE = ("/" + "work/", "/opt/" + "venv", "/" + "root/", "/" + "home/")
NOT_OURS = {"build", "dist", "runs", "__pycache__"}  # .gitignore's; names with a dot are skipped


def modules() -> Iterator[object]:
    """The dotted names of all modules; those of the studies are marked as such."""
    for path in (*LIBRARY, *STUDIES):
        parts = path.relative_to(ROOT).with_suffix("").parts
        marks = [pytest.mark.studies] if parts[0] == "studies" else []
        yield pytest.param(".".join(parts), marks=marks)


def files() -> Iterator[Path]:
    """All files of the repository that are ours."""
    for place, folders, names in os.walk(ROOT):
        folders[:] = [
            f
            for f in folders
            if f not in NOT_OURS and not f.endswith(".egg-info") and (f == ".ci" or f[0] != ".")
        ]
        yield from (Path(place, name) for name in names if name != ".git")


def test_imports_keep_the_contracts_of_pyproject(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    status = lint_imports(no_cache=True)
    assert status == EXIT_STATUS_SUCCESS, capsys.readouterr().out


@pytest.mark.parametrize("name", list(modules()))
def test_examples_in_docstrings_run(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_no_file_names_a_place_on_the_machine_it_was_written_on() -> None:
    seen = list(files())
    assert {ROOT / "setup.cfg", Path(__file__), *LIBRARY, *STUDIES} <= set(seen)
    named = [
        f"{path.relative_to(ROOT)}: {place}"
        for path in seen
        for place in MACHINE
        if place.encode() in path.read_bytes()
    ]
    assert not named
