"""The report's script and its picture, in a real browser where one is installed."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from report_cases import HOSTILE, Page, report, run, runs, screenshot_script

from metaopt.errors import UserError

screenshot = screenshot_script()


def installed() -> bool:
    try:
        return bool(screenshot.find_browser())
    except UserError:
        return False


browser = pytest.mark.skipif(not installed(), reason="no Chromium is installed")

DRIVE = """
const seen = {};
const rows = (column) =>
  [...document.querySelectorAll(".sortable tbody tr")].map((row) => row.cells[column].dataset.key);
const order = (column) => document.querySelectorAll(".sortable th")[column].ariaSort;
const press = (column) => document.querySelectorAll(".sortable thead button")[column].click();
seen.before = order(1);
press(2); seen.up = rows(2); seen.upOrder = order(2);
press(2); seen.down = rows(2); seen.downOrder = order(2);
press(0); seen.names = rows(0); seen.left = order(2);
seen.end = [...document.querySelectorAll(".value")].map((value) => value.textContent);
at.value = 2; at.dispatchEvent(new Event("input"));
seen.read = [...document.querySelectorAll(".value")].map((value) => value.textContent);
seen.step = at.getAttribute("aria-valuetext");
seen.line = crosshair.firstElementChild.getAttribute("x1");
seen.dots = [...document.querySelectorAll(".dot")].map((dot) => dot.getAttribute("cy"));
const hidden = () => [...document.querySelectorAll(".curve")].map(
  (curve) => getComputedStyle(curve).display === "none");
const legend = document.querySelectorAll(".legend li button");
legend[1].click(); seen.hidden = hidden(); seen.pressed = legend[1].ariaPressed;
at.dispatchEvent(new Event("input"));
setTimeout(() => {
  seen.said = document.getElementById("status").textContent;
  document.getElementById("hide-all").click(); seen.none = hidden();
  document.getElementById("show-all").click(); seen.all = hidden();
  const box = plot.getBoundingClientRect();
  const half = { clientX: box.left + box.width / 2, clientY: box.top + 9 };
  plot.dispatchEvent(new PointerEvent("pointermove", half)); seen.hover = at.value;
  document.body.append(Object.assign(document.createElement("pre"),
    { id: "seen", textContent: JSON.stringify(seen) }));
}, 500);
"""


def opened(text: str, folder: Path) -> Page:
    """The page as it is after its script ran."""
    path = folder / "report.html"
    path.write_text(text)
    dumped = screenshot.run_browser("--virtual-time-budget=2000", "--dump-dom", path.as_uri())
    return Page(dumped)


def driven(text: str, folder: Path) -> Any:
    """What a script sees that uses the page; the policy, which would stop it, is left out."""
    page = re.sub(r"<meta http-equiv=[^>]*>", "", text)
    ((_, seen),) = opened(f"{page}<script>{DRIVE}</script>", folder).find("pre")
    return json.loads(seen)


@browser
def test_the_policy_lets_the_script_run_and_hostile_names_do_nothing(tmp_path: Path) -> None:
    page = opened(report(runs(HOSTILE)), tmp_path)
    assert not [1 for found, _ in page.find("button") if "disabled" in found]
    assert [text for _, text in page.find("p", id="reading")] == ["Loss at step 12"]
    assert not page.find("img")


@browser
def test_a_reader_can_sort_read_a_step_and_hide_methods(tmp_path: Path) -> None:
    losses = np.array([[100.0], [10.0], [1.0], [0.1], [0.01]])
    bad = losses.copy()
    bad[2:] = math.nan
    results = [run("b", 100 * losses), run("bad", bad), run("a10", losses), run("a9", 9 * losses)]
    seen = driven(report(results), tmp_path)
    assert seen["before"] == seen["left"] == "none"
    assert seen["upOrder"] == "ascending"
    assert seen["downOrder"] == "descending"
    up = [float(key or "nan") for key in seen["up"]]
    assert up[:3] == pytest.approx([0.01, 0.09, 1.0])
    assert seen["down"] == [*seen["up"][2::-1], ""]
    assert seen["names"] == ["a9", "a10", "b", "bad"]
    assert seen["end"] == ["1", "diverged", "0.01", "0.09"]
    assert seen["read"] == ["100", "diverged", "1", "9"]
    assert seen["step"] == "step 2"
    assert seen["line"] == "50%"
    assert [dot is None for dot in seen["dots"]] == [False, True, False, False]
    heights = [float(seen["dots"][i][:-1]) for i in (0, 2, 3)]
    assert heights[0] < heights[2] < heights[1]
    assert seen["hidden"] == [False, True, False, False]
    assert seen["pressed"] == "false"
    assert seen["said"] == "Step 2: b 100, a10 1, a9 9."
    assert seen["none"] == [True] * 4
    assert seen["all"] == [False] * 4
    assert seen["hover"] == "2"


@browser
@pytest.mark.parametrize("dark", [False, True])
def test_the_picture_is_of_the_width_and_the_scheme_asked_for(tmp_path: Path, dark: bool) -> None:
    page, out = tmp_path / "report.html", tmp_path / "new" / "picture.png"
    page.write_text(report(runs(["gd", "adam"])))
    dark_flag = ["--dark"] if dark else []
    screenshot.main([str(page), "--out", str(out), "--phone", "--height", "700", *dark_flag])
    pixels = imread(out)
    assert pixels.shape[:2] == (700, screenshot.PHONE)
    assert (pixels[2, 2, :3].mean() < 0.2) == dark
    assert (pixels[2, -2] == pixels[2, 2]).all()  # the page is as wide as the picture


def test_without_a_browser_or_a_page_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "report.html"
    with pytest.raises(UserError, match=r"expected a report, got '.*report.html'"):
        screenshot.main([str(page), "--out", str(tmp_path / "out.png")])
    page.write_text("page")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="expected a browser of chromium, google-chrome"):
        screenshot.main([str(page), "--out", str(tmp_path / "out.png")])
    assert not (tmp_path / "out.png").exists()
