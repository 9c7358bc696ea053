"""Pictures: a user's style does not change them, and any name can be drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import fontManager
from report_cases import runs

from metaopt.evaluation.evaluate import Result
from metaopt.evaluation.figure import loss_figure, usual_style

HOSTILE_STYLE = {
    "text.usetex": True, "font.family": "no such font", "savefig.dpi": 20, "figure.dpi": 33,
    "savefig.transparent": True, "savefig.bbox": "tight", "axes.spines.left": False,
    "lines.linewidth": 9, "savefig.format": "pdf", "axes.spines.top": False, "font.size": 40,
}  # fmt: skip


def test_a_users_matplotlibrc_does_not_change_the_picture_and_stays_as_it_is() -> None:
    made = runs(["gd"])
    usual = loss_figure(made, "title")
    with matplotlib.rc_context(HOSTILE_STYLE):
        assert loss_figure(made, "title") == usual
        assert matplotlib.rcParams["text.usetex"] is True
        assert matplotlib.rcParams["savefig.dpi"] == 20


def font_with(character: str, path: Path) -> None:
    """Write a font that has one character, a square."""
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for point in ((100, 800), (900, 800), (900, 0)):
        pen.lineTo(point)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({ord(character): "square"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": pen.glyph()})
    builder.setupHorizontalMetrics(dict.fromkeys((".notdef", "square"), (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "One Square", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


def test_a_character_is_drawn_where_an_installed_font_has_it_and_else_as_its_escape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = ["字.safetensors", "plain"]
    with usual_style(labels) as names:  # warnings are errors here
        before = matplotlib.rcParams["font.family"]
        assert names[1] == "plain"
        if before == ["DejaVu Sans"]:  # as where no font is installed
            assert names[0] == r"\u5b57.safetensors"
    monkeypatch.setattr(fontManager, "ttflist", list(fontManager.ttflist))
    font_with("字", tmp_path / "one.ttf")
    fontManager.addfont(tmp_path / "one.ttf")
    with usual_style(labels) as names:
        assert names == labels
        assert len(matplotlib.rcParams["font.family"]) == 2
    made = runs(["gd"])
    named = [Result(replace(made[0].method, name=labels[0]), made[0].trajectory)]
    assert loss_figure(named, "title").startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "name", ["字" * 30, "\U0001f600", "a\nb\tc", "\u202eabc", "\udcff", "é" * 300, "n" * 5000]
)
def test_any_name_is_drawn_without_a_warning(name: str) -> None:
    made = runs(["gd"])
    named = [Result(replace(made[0].method, name=name), made[0].trajectory)] * 2
    assert loss_figure(named, "title").startswith(b"\x89PNG")


def test_long_names_are_short_in_the_legend_and_stay_different() -> None:
    names = [f"runs/{'n' * 90}{k}/best.safetensors" for k in range(3)] + ["gd"]
    with usual_style(names) as short:
        assert len(set(short)) == 4
        assert short[3] == "gd"
        assert all(len(label) < 50 and "best.safetensors" in label for label in short[:3])
