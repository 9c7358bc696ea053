"""Every benchmark runs, tiny, and prints one JSON line of finite numbers. Nothing is timed here."""

from __future__ import annotations

import importlib.util
import json
import math
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.studies  # it marks what stands beside the library

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
HELPERS = {
    "command",
    "interleaved",
    "trajectory",
    "jax_trajectory",
    "learned_optimization_pes",
    "teleport_networks",
}  # imported by the others
HELPERS |= {"scaling_point", "scaling_model", "scaling_projection", "scaling_tables"}
HELPERS |= {"scaling"}  # which test_scaling_benchmark.py runs
JAX = ["against_jax", "--batch=1", "--steps=10", "--repeats=1"]
PES = ["pes_against_learned_optimization", "--tasks=1", "--batch=2", "--window=2", "--repeats=1"]
TINY = [
    ["against_released_code", "--code=.", "--batch=1", "--runs=1", "--steps=2", "--repeats=1"],
    ["arithmetic", "--batch=1", "--steps=2", "--repeats=1"],
    ["devices", "--steps=1", "--tasks=2", "--networks=linear"],
    ["batching", "--problems=2", "--steps=2", "--repeats=1"],
    [
        "generalization",
        "--models=2",
        "--steps=2",
        "--images=8",
        "--directions=2",
        "--curves=1",
        "--repeats=1",
    ],
    ["balance_cost", "--width=8", "--blocks=1", "--batch=2", "--length=4", "--repeats=1"],
    ["lstm_step", "--rows=8"],
    ["memory", "--batch=1", "--steps=2", "--times=2", "--repeats=1"],
    ["methods", "--batch=1", "--steps=2", "--repeats=1"],
    ["own_tasks", "--copies=2", "--steps=2", "--repeats=1", "--windows=2"],
    ["step_cost", "--steps=1", "--repeats=1", "--width=4"],
    ["teleport_cost", "--samples=2", "--size=16", "--width=2", "--repeats=1"],
    ["teleporting_step", "--steps=2", "--repeats=1"],
    ["training_step_cost", "--steps=1", "--networks=perceptron", "--width=2"],
    ["unroll", "--batch=1", "--steps=10"],
    ["wall_clock", "--width=4", "--problems=1", "--loss=1e9"],
]
RELEASED = "def train_meta_opt(dim, **settings): print('run', 0)\n"  # as chatty as the real one


def numbers(result: dict[str, Any]) -> list[float]:
    found = []
    for value in result.values():
        found += numbers(value) if isinstance(value, dict) else [value]
    return [value for value in found if not isinstance(value, str)]


def test_no_benchmark_is_left_out() -> None:
    assert {path.stem for path in BENCHMARKS.glob("*.py")} == HELPERS | {
        command[0] for command in [*TINY, JAX, PES]
    }


@pytest.mark.parametrize("command", TINY, ids=[command[0] for command in TINY])
def test_a_benchmark_prints_one_line_of_json(
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    (tmp_path / "gradient_descent_mlp.py").write_text(RELEASED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(BENCHMARKS)
    script = str(BENCHMARKS / f"{command[0]}.py")
    monkeypatch.setattr(sys, "argv", [script, *command[1:], "--threads=1"])
    runpy.run_path(script, run_name="__main__")
    (line,) = capsys.readouterr().out.splitlines()
    assert all(math.isfinite(number) for number in numbers(json.loads(line)))


def test_against_jax_agrees_or_says_to_install_it() -> None:
    script = str(BENCHMARKS / f"{JAX[0]}.py")
    ran = subprocess.run([sys.executable, script, *JAX[1:]], capture_output=True, text=True)
    if importlib.util.find_spec("jax") is None:
        assert ran.returncode == 1
        assert ran.stderr == "this benchmark needs JAX: pip install jax\n"
    else:
        assert json.loads(ran.stdout)["meta_gradient_difference"] < 1e-3


def test_pes_against_learned_optimization_runs_or_says_what_to_install() -> None:
    script = str(BENCHMARKS / f"{PES[0]}.py")
    ran = subprocess.run([sys.executable, script, *PES[1:]], capture_output=True, text=True)
    if all(map(importlib.util.find_spec, ("jax", "flax", "learned_optimization"))):
        result = json.loads(ran.stdout)
        assert all(math.isfinite(number) for number in numbers(result))
        assert result["NNAdam"]["meta_parameters_there"] > 0
    else:
        assert ran.returncode == 1
        assert ran.stderr.startswith("this benchmark needs JAX and google/learned_optimization: ")
