"""The studies, in a size that takes seconds."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest

from metaopt.cli.recipes import Recipe
from metaopt.evaluation.figure import band_figure
from metaopt.evaluation.methods import BASELINES
from metaopt.learned.checkpoint import pretrained_path
from metaopt.tasks import RegressionFamily
from studies.learned_teleportation import __main__ as study_module
from studies.learned_teleportation import controls as controls_module
from studies.learned_teleportation import families as families_module
from studies.learned_teleportation.__main__ import EQ79, study
from studies.learned_teleportation.baselines import Baselines, steps_to_reach
from studies.learned_teleportation.controls import ABLATIONS, controls, trained_controls
from studies.learned_teleportation.curves import measure
from studies.learned_teleportation.families import FAMILIES, families
from studies.learned_teleportation.meta_seeds import chosen
from studies.learned_teleportation.scale import Quick
from studies.learned_teleportation.training_pool import train_one
from studies.recipes import PAPER, SHIPPED
from studies.report import markdown, over_seeds, write_json


@dataclass(frozen=True)
class Tiny(Quick):
    """Smaller than ``--quick``."""

    meta_seeds: int = 1
    problems: int = 2
    validation: int = 2
    steps: int = 10
    far: int = 12
    patience: int = 12
    marks: tuple[int, ...] = (5, 10)
    rates: tuple[float, ...] = (3e-4,)
    baselines: tuple[str, ...] = ("gd", "levenberg_marquardt")

    def recipe(self, recipe: Recipe) -> Recipe:
        small = super().recipe(recipe)
        training = replace(
            small.training,
            steps=3,
            trajectories=1,
            batch_size=1,
            window=3,
            validation_at=(3,),
            validation_families=(),
        )
        hidden = min(small.networks.hidden, 20)
        return Recipe(replace(small.networks, hidden=hidden), training)


def train_here(jobs, processes):
    """In this process, as no other has to be started."""
    for job in jobs:
        train_one(*job)


def test_the_study_runs_and_goes_on_from_what_is_there(tmp_path, capsys, monkeypatch):
    study(tmp_path, Tiny(), jobs=1)
    printed = capsys.readouterr().out
    for name in ("figure6.png", "paper.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    runs = json.loads((tmp_path / "runs.json").read_text())
    assert runs.keys() == {*SHIPPED, EQ79, *PAPER}
    for table in ("meta_seeds", "methods", "reach", "rates"):
        text = (tmp_path / "tables" / f"{table}.md").read_text()
        assert text in printed
        columns = {line.count("|") for line in text.strip().splitlines()}
        assert len(columns) == 1
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    kept |= {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(kept) > 20
    monkeypatch.setattr(study_module, "train_all", train_here)
    study(tmp_path, Tiny(), jobs=1)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_the_controls_run(tmp_path, monkeypatch):
    few = {
        name: recipe
        for name, recipe in trained_controls().items()
        if name in ("lstm_update_tele_v1", "no m2", "m2 whitens by 0.3", "without balance")
    }
    assert len(few) == 4
    monkeypatch.setattr(controls_module, "trained_controls", lambda: few)
    monkeypatch.setattr(controls_module, "train_all", train_here)
    controls(tmp_path, Tiny(), jobs=1, trajectories=2)
    trained = (tmp_path / "tables" / "trained.md").read_text()
    assert all(name in trained for name in few)
    replaced = (tmp_path / "tables" / "replaced.md").read_text()
    assert all(name in replaced for name in ABLATIONS)


def test_curves_come_from_disk_only_for_the_same_method_and_problems(tmp_path):
    built = []

    def build(problem):
        built.append(problem)
        return BASELINES["gd"].optimizer(problem)

    family = RegressionFamily(4, 4, 4, 4)
    path = tmp_path / "a" / "gd.npz"
    first = measure(path, "gd@1", build, family, [0, 1], 3)
    again = measure(path, "gd@1", build, family, [0, 1], 3)
    assert len(built) == 1
    assert np.array_equal(first.losses, again.losses)
    assert first.seconds == again.seconds
    other = replace(family, slope=0.2)
    for changed in (
        ("gd@2", family, [0, 1], 3),
        ("gd@2", family, [0, 2], 3),
        ("gd@2", other, [0, 2], 3),
        ("gd@2", other, [0, 2], 4),
    ):
        curves = measure(path, changed[0], build, *changed[1:])
        assert len(curves.losses) == changed[3] + 1
    assert len(built) == 5


@pytest.fixture(scope="module")
def baselines(tmp_path_factory):
    family = RegressionFamily.square(6)
    out = tmp_path_factory.mktemp("baselines")
    names = ("gd", "adam", "levenberg_marquardt")
    return Baselines(out, family, [10**6, 10**6 + 1], [0, 1], 6, names, (1e-4, 1e-2, 0.3))


def test_rates_are_chosen_on_validation_problems(baselines):
    for name in baselines.names:
        rate = baselines.best_rate(name, 6)
        losses = {r: baselines.validation[name, r].mean(6) for r in baselines.rates[name]}
        assert losses[rate] == min(losses.values())
        assert baselines.tuned(name).curves is baselines.test[name, rate]


def test_the_envelope_leaves_second_order_methods_out(baselines):
    envelope = baselines.envelope()
    assert set(envelope.methods) <= {"gd", "adam"}
    assert len(envelope.losses) == 7
    for step in (1, 6):
        name = envelope.methods[step]
        assert envelope.losses[step] == baselines.test[name, baselines.best_rate(name, step)].mean(
            step
        )


def test_steps_to_reach_counts_to_the_first_that_is_low_enough(baselines):
    curves = baselines.tuned("levenberg_marquardt").curves
    at = steps_to_reach(curves, curves.mean(3))
    assert at is not None
    assert curves.mean(at) <= curves.mean(3)
    assert at == 0 or curves.mean(at - 1) > curves.mean(3)
    assert steps_to_reach(curves, 0.0) is None


def test_the_chosen_meta_seed_is_the_best_on_validation_problems():
    class Run:
        def __init__(self, score):
            self.score = score

    runs = [Run(-1.0), Run(-3.0), Run(-2.0)]
    assert chosen(runs) is runs[1]


def test_a_band_is_the_median_between_best_and_worst():
    curves = [np.array([3.0, 1.0]), np.array([2.0, np.nan]), np.array([1.0, 5.0])]
    band = over_seeds("x", curves)
    assert band.middle.tolist() == [2.0, 5.0]
    assert band.low.tolist() == [1.0, 1.0]
    assert band.high[0] == 3.0
    assert np.isinf(band.high[1])
    assert band_figure([band], "t").startswith(b"\x89PNG")


def test_reports_are_plain(tmp_path):
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
    write_json(tmp_path / "x.json", {"a": float("nan"), "b": (1, np.float64(2.0))})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [1, 2.0]}


def test_the_families_run(tmp_path, monkeypatch):
    few = {name: FAMILIES[name] for name in ("width_8", "width_64", "three_layers")}
    monkeypatch.setattr(families_module, "FAMILIES", few)
    table = families(tmp_path, pretrained_path("lstm_update_tele"), quick=True)
    lines = table.strip().splitlines()
    assert len(lines) == 2 + 2  # the wide ones are left out when it has to be quick
    assert len({line.count("|") for line in lines}) == 1
