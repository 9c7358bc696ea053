"""docs/concepts.md: its pictures can be made again, and its numbers are what the code gives."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import ModuleType

import pytest
from matplotlib.image import imread
from script_cases import load

pytestmark = pytest.mark.studies  # the script draws functions from there

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "concepts.md"
NUMBER = re.compile(r"([-+\d.e]+)<!--([\w.]+)-->")
ROUNDING = 1e-6  # a number below is rounding, of which the size alone can be told


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load(ROOT / "scripts" / "concept_figures.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("concepts")


@pytest.fixture(scope="module")
def numbers(script, folder) -> dict[str, float]:
    return script.draw_all(folder)


def test_all_pictures_of_the_page_are_made_and_no_others(numbers, folder):
    assert numbers
    shown = re.findall(r"\]\(figures/concepts/([\w.]+)\)", PAGE.read_text())
    assert sorted(shown) == sorted(path.name for path in folder.iterdir())
    assert sorted(shown) == sorted(p.name for p in (PAGE.parent / "figures/concepts").iterdir())


def test_pictures_are_small_and_white_behind(numbers, folder):
    assert numbers
    for path in [*folder.iterdir(), *(PAGE.parent / "figures" / "concepts").iterdir()]:
        assert path.stat().st_size < 80_000
        pixels = imread(path)
        assert 300 < pixels.shape[0] < 700
        assert 800 < pixels.shape[1] < 1000
        assert (pixels[[0, 0, -1, -1], [0, -1, 0, -1]] == 1).all()


def test_a_picture_is_the_same_each_time(script, folder, numbers, tmp_path, monkeypatch):
    assert numbers
    monkeypatch.setattr(script, "FIGURES", (script.level_set, script.whitening))
    script.draw_all(tmp_path)
    for again in tmp_path.iterdir():
        assert again.read_bytes() == (folder / again.name).read_bytes()


def test_the_page_quotes_what_the_code_gives(numbers):
    quoted = NUMBER.findall(PAGE.read_text())
    assert len(quoted) > 30
    wrong = []
    for text, name in quoted:
        value, now = float(text), numbers[name]
        tiny = value < ROUNDING and now < ROUNDING
        near = 0.2 < now / value < 5 if tiny else math.isclose(now, value, rel_tol=0.1)
        wrong += [] if near else [f"{name}: {text} on the page, {now:.3g} now"]
    assert not wrong


def test_numbers_are_put_into_a_page(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "FIGURES", (script.inner_loop,))
    page = tmp_path / "page.md"
    page.write_text("A window of 99<!--inner_loop.window--> steps, 100 in all.\n")
    arguments = ["concept_figures.py", "--out", str(tmp_path), "--page", str(page)]
    monkeypatch.setattr("sys.argv", arguments)
    script.main()
    assert page.read_text() == "A window of 6<!--inner_loop.window--> steps, 100 in all.\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [(720, "720"), (0.0362149, "0.0362"), (463292.0, "4.63e5"), (4.9e-22, "5e-22"), (0, "0")],
)
def test_numbers_are_written_short(script, value, text):
    assert script.written(value) == text


def test_the_symmetry_of_the_page_is_one():
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert "assert torch.allclose(model(x), before)" in block
    exec(compile(block, str(PAGE), "exec"), {})
    with pytest.raises(AssertionError):
        exec(compile(block.replace("/= 2", "/= 3"), str(PAGE), "exec"), {})
