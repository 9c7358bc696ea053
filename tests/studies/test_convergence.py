"""The frame of the theory's studies: checks, verdicts, files, and the command line."""

import contextlib
import io
import json
import math
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from metaopt.cli.common import guarded
from studies.convergence import __main__ as command
from studies.convergence.outcome import (
    Outcome,
    bound_check,
    equality_check,
    order_check,
    png,
)
from studies.convergence.studies import STUDIES


@pytest.mark.parametrize(
    ("measured", "bound", "holds", "margin"),
    [
        ([1.0, 2.0], [2.0, 3.0], True, 1.5),
        ([1.0, 2.0], 2.0, True, 1.0),
        ([1.0, 2.0 + 1e-6], 2.0, False, 1.0),
        ([4.0], [1.0], False, 0.25),
        ([0.0], [0.0], True, math.inf),
        ([0.0], [-1.0], False, -math.inf),
    ],
)
def test_a_bound_holds_where_every_entry_is_below_it(measured, bound, holds, margin):
    check = bound_check("it", measured, bound)
    assert check.holds == holds == check.as_expected
    assert check.margin == pytest.approx(margin, rel=1e-5)
    assert bound_check("it", measured, bound, expected=False).as_expected != holds


@pytest.mark.parametrize(("measured", "bound"), [([math.nan], [1.0]), ([1.0], [math.nan])])
def test_what_is_not_a_number_breaks_a_bound(measured, bound):
    assert not bound_check("it", measured, bound).holds


def test_an_equality_is_relative_to_what_is_stated():
    check = equality_check("it", [3.0, 4.0 + 5e-6], [3.0, 4.0])
    assert not check.holds
    assert check.margin == pytest.approx(1e-6)
    assert equality_check("it", [3.0, 4.0 + 5e-6], [3.0, 4.0], tolerance=2e-6).holds
    assert not equality_check("it", [math.nan], [1.0]).holds
    assert equality_check("it", [1e-9], [0.0]).holds
    assert not equality_check("it", [1e-7], [0.0]).holds


@pytest.mark.parametrize(("fitted", "holds"), [(2.09, True), (1.91, True), (2.11, False)])
def test_an_order_holds_within_its_tolerance(fitted, holds):
    check = order_check("it", fitted, 2.0, 0.1)
    assert check.holds == holds
    assert check.margin == fitted
    assert not order_check("it", math.nan, 2.0, 0.1).holds


def outcome(*checks, study="a-study"):
    return Outcome(study, checks, {"series": np.array([1.0, math.inf]).tolist()}, png(Figure()))


def test_a_verdict_counts_what_came_out_as_it_should_and_names_the_rest():
    good = bound_check("eq. 1", 1.0, 2.0)
    printed = bound_check("eq. 2 as printed", 2.0, 1.0, expected=False)
    bad = bound_check("eq. 3", 2.0, 1.0)
    surprise = bound_check("eq. 4 as printed", 1.0, 2.0, expected=False)
    assert outcome(good, printed).verdict == "a-study: 2 of 2 statements as expected"
    assert outcome(good, printed).as_expected
    mixed = outcome(good, bad, surprise)
    assert not mixed.as_expected
    expected = "1 of 3 statements as expected, but: eq. 3 fails (0.5); eq. 4 as printed holds (2)"
    assert mixed.verdict == f"a-study: {expected}"
    assert not outcome().as_expected, "no check is no evidence"


def test_a_study_leaves_its_numbers_and_a_picture(tmp_path):
    outcome(bound_check("eq. 1", 1.0, 2.0)).write(tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "a-study.json").read_text())
    assert facts["verdict"] == "a-study: 1 of 1 statements as expected"
    assert facts["series"] == [1.0, None]
    (check,) = facts["checks"]
    assert check == {
        "statement": "eq. 1", "expected": True, "holds": True, "margin": 2.0, "as_expected": True,
        "kind": "bound / measured",
    }  # fmt: skip
    assert (tmp_path / "out" / "a-study.png").read_bytes().startswith(b"\x89PNG")


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["convergence", *arguments])
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = guarded(lambda _: command.main(list(arguments)))()
    return code, out.getvalue(), err.getvalue()


@pytest.fixture
def few(monkeypatch):
    """Two studies of no work, and whether they were asked to be quick."""
    asked = []

    def make(name):
        def study(quick):
            asked.append((name, quick))
            return outcome(bound_check("eq. 1", 1.0, 2.0), study=name)

        return study

    monkeypatch.setattr(command, "STUDIES", {name: make(name) for name in ("one", "two")})
    return asked


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["one"], [("one", False)]),
        (["all", "--quick"], [("one", True), ("two", True)]),
        (["all"], [("one", False), ("two", False)]),
    ],
)
def test_the_command_runs_what_is_named(monkeypatch, tmp_path, few, arguments, expected):
    code, out, _ = run(monkeypatch, *arguments, "--out", str(tmp_path))
    assert code == 0
    assert few == expected
    assert out.splitlines() == [f"{n}: 1 of 1 statements as expected" for n, _ in expected]
    assert {p.name for p in tmp_path.glob("*.*")} == {
        f"{n}.{kind}" for n, _ in expected for kind in ("json", "png")
    }
    shown = tmp_path / "tables" / "theory.md"
    assert shown.exists() == (arguments == ["all"]), "of all studies in full alone"
    if shown.exists():
        rows = shown.read_text().splitlines()[2:]
        assert rows == [f"| {n} | eq. 1 | hold | holds | bound / measured 2 |" for n, _ in expected]


def test_a_study_that_does_not_exist_is_refused_in_one_line(monkeypatch, few):
    code, out, err = run(monkeypatch, "three")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "three" in err
    assert "'one', 'two', 'all'" in err or "one, two, all" in err


def test_every_study_of_the_paper_is_there():
    assert list(STUDIES) == [
        "sgd-basin", "error-bound", "newton", "one-teleport", "newton-direction", "convex-order",
        "curvature-shift", "landscapes", "symmetric-families",
    ]  # fmt: skip
