"""Evaluation: rows, manifest, figure, report, and the sweep of learning rates."""

from __future__ import annotations

import io
import json
import math
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from report_cases import Page

from metaopt.cli import evaluate as command
from metaopt.cli import sweep as sweep_command
from metaopt.errors import UserError
from metaopt.evaluation.evaluate import Result, evaluate
from metaopt.evaluation.figure import loss_figure
from metaopt.evaluation.methods import BASELINES, default_methods, resolve
from metaopt.evaluation.results import (
    MANIFEST,
    RESULTS,
    git_revision,
    rows,
    save,
)
from metaopt.evaluation.rollout import Trajectory, rollout
from metaopt.evaluation.styles import BACKGROUND, LIGHT, method_styles
from metaopt.evaluation.sweep import Swept, best, sweep
from metaopt.learned.checkpoint import pretrained_path
from metaopt.tasks import PAPER_TEST_SEEDS, RegressionFamily
from metaopt.tasks.seeds import TEST, TRAINING, VALIDATION

torch.set_num_threads(1)  # the tensors are tiny; more threads only wait for one another

FAMILY = RegressionFamily(samples=4, input=5, hidden=3, output=2)
SIZES = ["--samples", "4", "--input", "5", "--hidden", "3", "--output", "2"]
SEEDS = [7, 11]
STEPS = 7
KEYS = {"method", "problem_seed", "step", "loss", "grad_norm", "defect", "refused"}


def results(*names: str) -> list[Result]:
    return list(evaluate([resolve(name) for name in names], FAMILY, SEEDS, STEPS))


def strict(text: str) -> Any:
    """JSON without the NaN and Infinity that Python would let pass."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def run_command(out: Path, *arguments: str) -> None:
    command.main([*SIZES, "--steps", "3", "--problems", "2", "--out", str(out), *arguments])


def test_one_row_for_each_method_seed_and_step_with_exactly_the_keys(tmp_path: Path) -> None:
    made = results("gd", "gd_tele")
    save(tmp_path, made, SEEDS, FAMILY, STEPS)
    read = [strict(line) for line in (tmp_path / RESULTS).read_text().splitlines()]
    assert all(set(row) == KEYS for row in read)
    assert [(row["method"], row["problem_seed"], row["step"]) for row in read] == [
        (method, seed, step)
        for method in ("gd", "gd_tele")
        for seed in SEEDS
        for step in range(STEPS + 1)
    ]
    runs = [result.trajectory for result in made]
    for key, recorded in (("loss", "losses"), ("grad_norm", "grad_norms")):
        expected = torch.cat([getattr(run, recorded).T.flatten() for run in runs]).tolist()
        assert [row[key] for row in read] == expected
    assert all(row["refused"] is False for row in read)


def test_the_defect_is_null_where_nothing_was_teleported() -> None:
    for result in results("gd", "gd_tele"):
        for row in rows(result, SEEDS):
            teleported = row["method"] == "gd_tele" and row["step"] == 6
            assert (row["defect"] is not None) == teleported


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null(bad: float) -> None:
    made = torch.tensor([[1.0, 2.0], [3.0, bad]], dtype=torch.float64)
    refused = torch.tensor([[False, False], [False, True]])
    result = Result(BASELINES["gd"], Trajectory(made, 10 * made, 100 * made, refused, 0.1))
    last = list(rows(result, SEEDS))[-1]
    assert last == {
        "method": "gd",
        "problem_seed": SEEDS[1],
        "step": 1,
        "loss": None,
        "grad_norm": None,
        "defect": None,
        "refused": True,
    }
    assert [row["loss"] for row in rows(result, SEEDS)][:3] == [1.0, 3.0, 2.0]


@pytest.mark.parametrize(
    "seed", [VALIDATION.start, VALIDATION.stop - 1, TRAINING.start, TEST.stop, -1]
)
def test_seeds_that_are_not_for_testing_are_refused(seed: int) -> None:
    with pytest.raises(UserError, match=rf"test seeds.*got {seed}"):
        list(evaluate([BASELINES["gd"]], FAMILY, [0, seed], 1))


def test_all_methods_start_from_the_same_problems() -> None:
    made = results("gd", "lbfgs", "lstm_update")
    for result in made[1:]:
        assert torch.equal(result.trajectory.losses[0], made[0].trajectory.losses[0])


def test_the_manifest_says_how_to_get_the_same_numbers_again(tmp_path: Path) -> None:
    path = str(pretrained_path("lstm_update"))
    made = results("adam@0.05", "lstm_update", path)
    save(tmp_path, made, SEEDS, FAMILY, STEPS)
    manifest = strict((tmp_path / MANIFEST).read_text())
    assert manifest["versions"]["metaopt"] == metadata.version("metaopt-teleport")
    for package in ("torch", "numpy", "higher"):
        assert manifest["versions"][package] == metadata.version(package)
    assert manifest["versions"]["python"].startswith("3.")
    assert "git_revision" in manifest
    assert manifest["threads"] == torch.get_num_threads()
    assert manifest["config"] == {"problem": asdict(FAMILY), "steps": STEPS}
    assert manifest["problem_seeds"] == SEEDS
    assert list(manifest["methods"]) == ["adam@0.05", "lstm_update", path]
    for result in made:
        facts = manifest["methods"][result.method.name]
        assert facts["seconds_per_step"] == result.trajectory.seconds_per_step > 0
        assert facts["rate"] == result.method.rate
        assert facts["learned"] == result.method.learned
    assert manifest["methods"][path]["checkpoint"]["spec"]["update"] == "coordinatewise"
    problem = RegressionFamily(**manifest["config"]["problem"]).sample(manifest["problem_seeds"])
    again = rollout(problem, resolve("adam@0.05").optimizer(problem), STEPS)
    assert torch.equal(again.losses, made[0].trajectory.losses)


@pytest.mark.parametrize(
    "error", [FileNotFoundError("git"), subprocess.CalledProcessError(128, "git")]
)
def test_without_git_or_a_checkout_the_revision_is_null(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    save(tmp_path, results("gd"), SEEDS, FAMILY, STEPS)
    assert strict((tmp_path / MANIFEST).read_text())["git_revision"] is None


def test_the_figure_is_a_png_that_shows_something() -> None:
    picture = loss_figure(results("gd", "lstm_update"), "title")
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    pixels = matplotlib.image.imread(io.BytesIO(picture), format="png")
    assert pixels.shape[:2] == (750, 1350)
    assert pixels.std() > 0.01
    assert picture != loss_figure(results("adam", "lstm_update"), "title")


def test_the_figure_is_opaque_and_has_the_colours_of_its_methods() -> None:
    picture = loss_figure(results("gd", "lstm_update"), "title")
    pixels = matplotlib.image.imread(io.BytesIO(picture), format="png")
    assert (pixels[..., 3] == 1).all()
    assert to_hex(pixels[0, 0]) == BACKGROUND
    seen = {tuple(pixel) for pixel in np.round(255 * pixels[..., :3]).astype(int).reshape(-1, 3)}
    shown = {"#" + bytes(map(int, pixel)).hex() for pixel in seen}
    drawn = {style.line["color"] for style in method_styles(["gd", "lstm_update"])}
    assert drawn <= shown
    assert not (set(LIGHT) - drawn) & shown


@pytest.mark.parametrize("value", [math.inf, math.nan, 0.0])
def test_a_figure_of_runs_that_diverged_or_reached_zero_is_drawn(value: float) -> None:
    made = results("gd")
    made[0].trajectory.losses[1:] = value
    assert loss_figure(made, "title").startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "name", ["$x^^y$.safetensors", r"$\frac$.safetensors", "_private.safetensors"]
)
def test_the_figure_takes_a_method_name_as_it_is(name: str) -> None:
    """Neither as TeX, nor as the name of a line to leave out of the legend."""
    made = results("gd")
    named = [Result(replace(made[0].method, name=name), made[0].trajectory)]
    assert loss_figure(named, "title").startswith(b"\x89PNG")


def test_the_revision_is_that_of_the_checkout_whatever_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = git_revision()
    git = ["git", "-C", str(tmp_path), "-c", "user.email=a@b", "-c", "user.name=a"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    for name, value in {
        "GIT_DIR": tmp_path / ".git", "GIT_WORK_TREE": tmp_path, "GIT_INDEX_FILE": tmp_path / "no",
        "GIT_COMMON_DIR": tmp_path / ".git", "GIT_CEILING_DIRECTORIES": "/",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
        found = git_revision()
        assert found == own
        assert found is None or not head.stdout.startswith(found.removesuffix("-dirty"))


def test_the_command_leaves_results_manifest_figure_and_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "<b>.safetensors"
    shutil.copy(pretrained_path("lstm_update_tele"), checkpoint)
    out = tmp_path / "new" / "out"
    run_command(out, "--methods", f"{checkpoint}, gd,gd", "--tensorboard")
    names = [str(checkpoint), "gd"]  # named once, evaluated once
    read = [strict(line) for line in (out / RESULTS).read_text().splitlines()]
    assert len(read) == 2 * 2 * 4
    assert list(dict.fromkeys(row["method"] for row in read)) == names
    assert {row["problem_seed"] for row in read} == {0, 1}
    assert list(strict((out / MANIFEST).read_text())["methods"]) == names
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    page = Page((out / "report.html").read_text())
    assert [method["name"] for method in page.data["methods"]] == names
    assert page.find("h1")[0][1] == "Loss on 2 held-out problems (3 hidden units, 4 samples)"
    revision = strict((out / MANIFEST).read_text())["git_revision"] or ""
    assert f"metaopt {metadata.version('metaopt-teleport')}" in page.find("dd")[3][1]
    assert revision in page.find("dd")[3][1]
    assert list((out / "tensorboard").rglob("events.*"))
    printed = capsys.readouterr().out
    for expected in (*names, str(out / RESULTS), str(out / "report.html")):
        assert expected in printed
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == [".lock"]


def test_the_command_run_twice_gives_the_same_rows(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        run_command(tmp_path / folder, "--methods", "adam_tele,lstm_update")
    first, second = ((tmp_path / folder / RESULTS).read_bytes() for folder in ("a", "b"))
    assert first == second


def test_the_command_without_methods_runs_the_learned_ones_and_gd(tmp_path: Path) -> None:
    run_command(tmp_path, "--seeds", "paper")
    manifest = strict((tmp_path / MANIFEST).read_text())
    assert list(manifest["methods"]) == default_methods()
    assert manifest["problem_seeds"] == list(PAPER_TEST_SEEDS)


def test_the_sweep_draws_validation_problems_only(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[int]] = []
    original = RegressionFamily.sample

    def spy(self: RegressionFamily, seeds: Iterable[int]) -> Any:
        drawn.append(list(seeds))
        return original(self, drawn[-1])

    monkeypatch.setattr(RegressionFamily, "sample", spy)
    swept = list(sweep(["gd", "adam"], FAMILY, problems=3, steps=2, rates=(1e-3, 1e25)))
    assert drawn == [list(VALIDATION[:3])] * 4
    assert [(s.method, s.rate) for s in swept] == [
        ("gd", 1e-3), ("gd", 1e25), ("adam", 1e-3), ("adam", 1e25),
    ]  # fmt: skip
    assert [math.isfinite(s.loss) for s in swept] == [True, False, True, False]
    problem = original(FAMILY, VALIDATION[:3])
    losses = rollout(problem, resolve("gd@1e-3").optimizer(problem), 2).losses[-1]
    assert swept[0].loss == pytest.approx(losses.log().mean().exp().item(), rel=1e-9)


def test_the_best_is_the_lowest_finite_loss_of_each_method() -> None:
    first = [Swept("b", 0.1, math.inf), Swept("b", 0.2, 3.0), Swept("a", 0.1, 2.0)]
    swept = [*first, Swept("b", 0.3, 1.0), Swept("a", 0.2, math.inf)]
    assert best(swept) == [Swept("b", 0.3, 1.0), Swept("a", 0.1, 2.0)]


def test_the_sweep_command_prints_the_best_rate_of_each_method(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweep_command, "RegressionFamily", lambda: FAMILY)
    sweep_command.main(["--methods", "gd", "--problems", "1", "--steps", "1"])
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["method"] == "gd"
    assert found["loss_at"][f"{found['best']:g}"] == min(found["loss_at"].values())
