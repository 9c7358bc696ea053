"""The scaling benchmark: its quick form has all axes, and its model finds coefficients again."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.studies  # it marks what stands beside the library

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
AXES = {"width", "width_of_one", "batch", "steps", "hidden", "window", "processes"}
TASKS = {"update_tele", "update", "evaluation"}


def run(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, str(BENCHMARKS / "scaling.py"), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stderr
    (line,) = ran.stdout.splitlines()
    result: dict[str, Any] = json.loads(line)
    return result


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    path = tmp_path_factory.mktemp("scaling") / "quick.json"
    result = run("--quick", "--repeats", "1")
    path.write_text(json.dumps(result))
    return result, path


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for part in value.values():
            yield from numbers(part)
    elif not isinstance(value, str):
        yield value


def test_the_quick_form_has_all_axes_and_tasks(quick: tuple[dict[str, Any], Path]) -> None:
    result, _ = quick
    assert set(result["axes"]) == AXES
    assert all(math.isfinite(number) for number in numbers(result))
    for name in AXES - {"processes"}:
        tasks = TASKS - {"evaluation"} if name == "window" else TASKS
        assert set(result["axes"][name]) == tasks
        for found in result["axes"][name].values():
            field = name.removesuffix("_of_one")
            assert [str(point[field]) for point in found.values()] == list(found)
            assert len(found) == 2
            assert all(point["seconds"] > 0 and point["rss"] > 2**20 for point in found.values())
    shared = result["axes"]["processes"].values()
    assert [point["processes"] for point in shared] == [1, 2]


def test_the_quick_form_counts_operations_and_fits_seconds(
    quick: tuple[dict[str, Any], Path],
) -> None:
    result, _ = quick
    counts = {task: count["kernels"] for task, count in result["parts"]["operations"].items()}
    assert counts["update_tele"] > counts["evaluation"] > 100
    assert counts["update_tele"] > counts["update"] > 50
    assert set(result["model"]["seconds"]) == TASKS


def test_what_was_measured_is_read_again_and_drawn(
    quick: tuple[dict[str, Any], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result, path = quick
    picture = tmp_path / "scaling.png"
    monkeypatch.syspath_prepend(BENCHMARKS)
    command = ["scaling.py", "--read", str(path), "--picture", str(picture)]
    monkeypatch.setattr(sys, "argv", command)
    importlib.import_module("scaling").main()
    assert json.loads(capsys.readouterr().out) == result
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("task", sorted(TASKS))
def test_the_model_finds_the_coefficients_of_its_own_numbers(
    task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    model = importlib.import_module("scaling_model")
    sizes = [
        (w, b, h, k) for w in (8, 20, 50) for b in (1, 9) for h in (5, 20, 80) for k in (3, 50)
    ]
    points = [
        {"task": task, "width": w, "batch": b, "steps": 100, "hidden": h, "window": k}
        for w, b, h, k in sizes
    ]
    for quantity, result in (("seconds", "seconds"), ("bytes", "growth")):
        features = model.QUANTITIES[quantity][0]
        largest = {n: max(features(p)[n] for p in points) for n in features(points[0])}
        told = {name: 1e9 * (1 + i) / largest[name] for i, name in enumerate(largest)}
        for point in points:
            value = model.modelled(point, told, quantity)
            scale = point["steps"] / point["batch"] if quantity == "seconds" else 1.0
            point[result] = value * scale
        found = model.fit(points, quantity)
        assert found["error_largest"] < 1e-6
        assert {name: found[name] for name in told} == pytest.approx(told, rel=1e-4)


def test_an_axis_ends_before_a_run_that_would_take_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    scaling = importlib.import_module("scaling")
    monkeypatch.setattr(scaling, "in_a_process", lambda point, options: {"seconds": 1.0})
    options = argparse.Namespace(quick=False, limit=20.0)
    assert list(scaling.axis("batch", "update", options)) == ["1", "2", "4", "8", "16"]
    assert list(scaling.axis("width", "update", options)) == ["8"]  # twice the width is four times
