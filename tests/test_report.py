"""The report: what it holds, that names stay text, and that nothing outside is asked for."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_cases import HOSTILE, MANIFEST, Page, report, run, runs

import metaopt.evaluation.report as package
from metaopt.evaluation.report.axis import log_limits, log_ticks, step_ticks
from metaopt.evaluation.report.chart import MOST_STEPS, shown_steps
from metaopt.evaluation.report.facts import seeds_text
from metaopt.evaluation.report.page import colours
from metaopt.evaluation.statistics import geometric_mean
from metaopt.evaluation.styles import MARKERS, method_styles
from metaopt.evaluation.table import number

COLOURS = Path(package.__file__).parent / "files" / "colours.css"
STYLE = "".join(path.read_text() for path in sorted(COLOURS.parent.glob("*.css")))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_stays_text_wherever_it_stands(name: str) -> None:
    page = Page(report(runs([name, "gd"]), title=name))
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert not [key for _, found in page.tags for key in found if key.startswith("on")]
    assert [text for _, text in page.find("title") + page.find("h1")] == [name, name]
    assert [method["name"] for method in page.data["methods"]] == [name, "gd"]
    # Who is lowest, legend, text of the chart, both tables.
    assert [text for _, text in page.find("bdi")].count(name) == 5
    assert page.find("th", data_key=name)
    assert len(page.find("script")) == 2


def test_bytes_in_a_path_that_are_no_text_do_not_stop_the_page() -> None:
    page = Page(report(runs(["\udcff.safetensors"])))
    assert page.find("th", data_key="?.safetensors")


def test_the_policy_lets_this_style_and_this_script_run_and_nothing_else() -> None:
    text = report(runs(HOSTILE))
    page = Page(text)
    ((found, _),) = page.find("meta", http_equiv="Content-Security-Policy")
    policy = dict(part.split(" ", 1) for part in (found["content"] or "").split("; "))
    for tag, name in (("style", "style-src"), ("script", "script-src")):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy.pop(name) == f"'sha256-{digest}'"
    assert policy == {
        "default-src": "'none'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert not [1 for _, attributes in page.tags if "style" in attributes]


def test_the_page_asks_for_nothing_outside() -> None:
    text = report(runs(["gd"]))
    assert not any(word in text for word in ("http:", "https:", "@import", "url(", "import("))
    keys = ("src", "href", "srcset", "data", "action", "poster")
    references = [v or "" for _, found in Page(text).tags for k, v in found.items() if k in keys]
    beside = {"loss.png", "results.jsonl", "manifest.json"}
    assert {r for r in references if r[0] != "#"} == {"data:,", *beside}


def test_the_page_has_landmarks_names_and_one_heading() -> None:
    page = Page(report(runs(["gd", "adam"])))
    for tag in ("header", "main", "footer", "h1"):
        assert len(page.find(tag)) == 1
    ids = [found["id"] for _, found in page.tags if "id" in found]
    assert len(ids) == len(set(ids))
    named = [
        value
        for _, found in page.tags
        for key, value in found.items()
        if key in ("aria-labelledby", "aria-describedby", "for")
    ]
    inside = [found["href"] for tag, found in page.tags if tag in ("a", "use")]
    targets = [*named, *(href[1:] for href in inside if href and href[0] == "#")]
    assert set(targets) <= set(ids)
    assert page.find("a", class_="skip", href="#main")
    assert page.find("svg", role="img", aria_describedby="chart-text")
    assert page.find("p", role="status", aria_live="polite")
    assert len(page.find("caption")) == len(page.find("table")) == 2
    assert all(found.get("scope") in ("col", "row") for found, _ in page.find("th"))
    (first, *_) = page.tags[1:]
    assert first == ("head", {})
    assert page.find("html", lang="en")


def test_every_method_is_in_both_tables_the_chart_and_the_legend() -> None:
    names = [f"method {i}" for i in range(17)]
    results = runs(names)
    results[0] = replace(results[0], method=replace(results[0].method, learned=True))
    page = Page(report(results))
    rows = [found["data-key"] for found, _ in page.find("th", scope="row") if "data-key" in found]
    assert rows == names
    assert [text for _, text in page.find("th", scope="col")][-17:] == names
    assert [line.count(",") for _, line in page.curves] == [13] * 17
    styles = [style for style, _ in page.curves]
    assert ["learned" in style for style in styles] == [True] + [False] * 16
    markers = [found["href"] for found, _ in page.find("use", x="18")]
    assert len(set(zip(styles, markers, strict=True))) == 17  # all look different
    assert [text for _, text in page.find("button") if text in names] == names
    ((_, alternative),) = page.find("p", id="chart-text")
    assert all(name in alternative for name in names)


def test_a_method_has_the_colour_dashes_and_marker_of_every_picture() -> None:
    names = ["gd", "mine", "adam@0.1", "lstm_update_tele"]
    page = Page(report(runs(names)))
    styles = method_styles(names)
    for (classes, _), style in zip(page.curves, styles, strict=True):
        assert {f"colour-{style.colour}", f"dash-{style.dash}"} <= set(classes.split())
    markers = [found["href"] for found, _ in page.find("use", x="18")]
    assert markers == [f"#marker-{style.marker}" for style in styles]
    assert len(page.find("path", id=f"marker-{len(MARKERS) - 1}")) == 1


def test_the_chart_draws_what_the_tables_and_the_script_say() -> None:
    results = runs(["gd", "adam"])
    page = Page(report(results))
    means = [[geometric_mean(at).mean for at in result.losses] for result in results]
    assert [m["values"] for m in page.data["methods"]] == [[*map(number, m)] for m in means]
    for mean, (_, line) in zip(means, page.curves, strict=True):
        points = np.array([point.split(",") for point in line[1:].split()], dtype=float)
        assert points[:, 0] == pytest.approx(np.linspace(0, 1000, len(mean)), abs=0.5)
        height = page.data["top"] - page.data["bottom"]
        drawn = page.data["top"] - height * points[:, 1] / 1000
        assert drawn == pytest.approx(np.log10(mean), abs=0.002 * height)
    cells = [text.split(" [")[0] for found, text in page.find("td") if "data-key" not in found]
    assert cells == [number(mean[step]) for step in range(13) for mean in means]


def test_a_method_that_diverged_has_a_gap_and_says_so() -> None:
    losses = np.full((8, 3), 10.0)
    losses[2, 1] = math.nan
    losses[5:, 2] = math.inf
    text = report([run("bad", losses), run("good", np.full((8, 3), 5.0))])
    page = Page(text)
    assert page.data["methods"][0]["values"] == [
        "10",
        "10",
        "diverged",
        "10",
        "10",
        *["diverged"] * 3,
    ]
    (_, line), _ = page.curves
    assert [part.count(",") for part in line.split("M")[1:]] == [2, 2]
    assert not re.search(r"\bnan\b|\binf\b|Infinity", text.split("<script>")[0], re.IGNORECASE)
    keys = [found["data-key"] for found, text in page.find("td") if text == "diverged"
            and "data-key" in found]  # fmt: skip
    assert keys == ["", ""]  # the last step and the worst problem
    ((_, alternative),) = page.find("p", id="chart-text")
    assert alternative.index("good 5") < alternative.index("bad diverged")
    assert "At step 7 the lowest is good, at 5." in " ".join(page.texts[0].split())


def test_cells_sort_by_the_whole_number() -> None:
    losses = np.full((2, 1), 1.0)
    page = Page(report([run("a", losses * 1.00012), run("b", losses * 1.00011)]))
    cells = [(float(found["data-key"] or "nan"), text) for found, text in page.find("td")
             if "data-key" in found]  # fmt: skip
    assert cells[1][1].split()[0] == cells[8][1].split()[0] == "1"
    assert cells[1][0] > cells[8][0]


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, 3.0, 1e300])
@pytest.mark.parametrize("shape", [(2, 1), (2, 4), (1, 1), (30, 2)])
def test_small_and_hopeless_runs_make_a_page(value: float, shape: tuple[int, int]) -> None:
    page = Page(report([run("only", np.full(shape, value))]))
    assert len(page.data["steps"]) == shape[0]
    assert len(page.find("circle")) == 1
    nothing = [text for _, text in page.find("text") if text.startswith("No method")]
    assert len(nothing) == (not math.isfinite(value))
    assert 1 < len([1 for f, _ in page.find("text") if str(f.get("x")) == "-9"]) < 8


def test_the_page_is_small_however_long_the_run() -> None:
    names = [f"runs/a-study-of-some-length/method-{i}/best.safetensors" for i in range(17)]
    assert len(report(runs(names, steps=100, problems=64)).encode()) < 400_000
    for last in (0, 1, MOST_STEPS, MOST_STEPS + 1, 12_345):
        steps = shown_steps(last)
        assert steps[0] == 0
        assert steps[-1] == last
        assert len(steps) <= MOST_STEPS + 2


def test_the_head_says_what_was_run_and_by_what() -> None:
    text = report(runs(["gd"], steps=12, problems=5))
    page = Page(text)
    said = [text for _, text in page.find("dd")][:4]
    assert said[0] == "5 held-out, of seeds 0 to 4"
    assert said[1].startswith("12 of each method")
    assert said[2] == "hidden 3, loss half_squared"
    assert said[3] == "metaopt 9.8.7 at revision abc1234-dirty, python 3.11.7, torch 2.9.0"
    bare = report(
        runs(["gd"]), git_revision=None, versions={**MANIFEST["versions"], "metaopt": None}
    )
    assert "metaopt (not installed), python" in bare
    assert seeds_text(range(1, 20, 2)) == "1, 3, 5, 7, 9, 11, 13, 15, …"


@pytest.mark.parametrize(("low", "high"), [(1e-13, 1e6), (1.0, 1.0), (2.0, 30.0), (1e-30, 1e-29)])
def test_a_log_axis_holds_its_values_and_some_ticks(low: float, high: float) -> None:
    bottom, top = log_limits([low, high, math.nan, math.inf])
    assert bottom < math.log10(low) <= math.log10(high) < top
    ticks = log_ticks(bottom, top)
    assert 2 <= len(ticks) <= 7
    assert all(bottom <= tick.at <= top for tick in ticks)


@pytest.mark.parametrize("last", [0, 1, 6, 7, 99, 100, 12_345])
def test_a_step_axis_has_a_few_whole_ticks(last: int) -> None:
    ticks = step_ticks(last)
    assert ticks[0].at == 0
    assert min(last + 1, 3) <= len(ticks) <= 7
    assert ticks[-1].at <= last


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out_in_both_schemes(scheme: str) -> None:
    schemes = [text.split("@media (prefers-color-scheme: dark)") for text in
               (COLOURS.read_text(), colours())]  # fmt: skip
    light, dark = ("".join(parts) for parts in zip(*schemes, strict=True))
    found = dict(re.findall(r"--([\w-]+): (#\w{6});", light if scheme == "light" else dark))
    lines = [name for name in found if re.fullmatch(r"colour-\d", name)]
    assert len(lines) == 8
    least = dict.fromkeys(("text", "quiet", "accent"), 4.5) | dict.fromkeys(lines, 3.0)
    for behind in ("page", "panel"):
        for name, wanted in least.items():
            pair = sorted([luminance(found[name]), luminance(found[behind])])
            assert (pair[1] + 0.05) / (pair[0] + 0.05) >= wanted, f"{name} on {behind}"


def test_nothing_moves_for_those_who_prefer_that() -> None:
    moving = STYLE.split("@media (prefers-reduced-motion: no-preference)")
    assert len(moving) == 2
    assert not re.search("transition|animation|scroll-behavior", moving[0])
