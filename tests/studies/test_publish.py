"""``scripts/publish.py``: ships the best on validation problems, and fills the pages."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from script_cases import load

from metaopt.evaluation.reference import FILE, WORST, reference
from metaopt.learned.checkpoint import pretrained_path
from studies.recipes import SHIPPED

SCRIPT = Path(__file__).parents[2] / "scripts" / "publish.py"
PAGE = (
    "before ![](figures/figure6.png)\n<!-- table: one -->\n{}\n<!-- end -->\n"
    "<!-- table: none -->\nkept\n<!-- end -->\n"
)


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """The script, with a root of its own."""
    module = load(SCRIPT)
    root = tmp_path / "root"
    for folder in ("docs/figures", "metaopt/learned/pretrained"):
        (root / folder).mkdir(parents=True)
    for name in ("README.md", "docs/results.md"):
        (root / name).write_text(PAGE.format("old"))
    monkeypatch.setattr(module, "ROOT", root)
    monkeypatch.setattr(module, "PAGES", (root / "README.md", root / "docs" / "results.md"))
    return module


def test_a_study_is_shipped_and_shown_wherever_it_lies(publish, tmp_path, monkeypatch):
    study = tmp_path / "study"
    runs = {}
    for name in SHIPPED:
        runs[name] = []
        for seed, source in enumerate(("lstm_update", "lstm_lr_tele")):
            folder = study / "runs" / f"{name}-{seed}"
            folder.mkdir(parents=True)
            shutil.copy(pretrained_path(source), folder / "best.safetensors")
            runs[name].append({"seed": seed, "score": -seed, "folder": f"runs/{name}-{seed}"})
    (study / "runs.json").write_text(json.dumps(runs))
    (study / "tables").mkdir()
    (study / "tables" / "one.md").write_text("| new |\n")
    for picture in ("figure6.png", "shown-nowhere.png"):
        (study / picture).write_bytes(b"picture")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["publish.py", "--studies", str(study)])
    publish.main()
    for name in SHIPPED:
        shipped = publish.ROOT / "metaopt" / "learned" / "pretrained" / f"{name}.safetensors"
        assert shipped.read_bytes() == pretrained_path("lstm_lr_tele").read_bytes()
    (picture,) = (publish.ROOT / "docs" / "figures").iterdir()
    assert picture.name == "figure6.png"
    assert picture.read_bytes() == b"picture"
    for page in publish.PAGES:
        assert page.read_text() == PAGE.format("| new |")


def test_the_readmes_table_of_methods_is_kept_with_the_package(publish):
    folder = publish.ROOT / "metaopt" / "evaluation"
    folder.mkdir()
    shutil.copy(SCRIPT.parents[1] / "README.md", publish.ROOT)
    publish.show([])
    kept = json.loads((folder / FILE).read_text())
    assert kept == reference()
    assert {"lstm_update_tele", "adam@0.7"} <= kept["methods"].keys()
    assert set(kept["methods"]["lstm_update"]) == {"10", "20", "30", "50", "100", WORST}


WIDE = (
    "| name | loss | gain | moved |\n| --- | --- | --- | --- |\n"
    "| a | 1 |  |  |\n| b\\|c | 2 | 3 | 4 |\n"
)


def test_a_page_keeps_the_columns_that_it_shows(publish):
    shown = "| name | moved |\n| --- | --- |\n| old | 0 |\n"
    assert publish.narrowed(WIDE, shown) == (
        "| name | moved |\n| --- | --- |\n| a |  |\n| b\\|c | 4 |\n"
    )


def test_rows_that_are_mostly_empty_in_these_columns_are_left_out(publish):
    shown = "| name | gain | moved |\n"
    assert publish.narrowed(WIDE, shown).splitlines()[2:] == ["| b\\|c | 3 | 4 |"]


@pytest.mark.parametrize(
    "shown", ["old\n", "", "| name | other |\n", "| name | loss | gain | moved |\n"]
)
def test_a_page_with_other_columns_gets_the_whole_table(publish, shown):
    assert publish.narrowed(WIDE, shown) == WIDE
