"""The study of section 5.1, in a size that takes seconds, and what it leaves."""

import json
import math

import numpy as np
import pytest
from image_study_cases import TINY, cell, dataset, made_up
from scipy import stats

from studies.optimizers.mnist import PAPER_EPOCHS, PAPER_RATES, VARIANTS, final, mnist
from studies.optimizers.mnist_report import (
    STYLES,
    TELEPORTS,
    gain,
    legend_handles,
    report,
    teleport_epoch_fraction,
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """(folder, results, table)."""
    out = tmp_path_factory.mktemp("study")
    results = mnist(out, dataset(out / "images"), TINY)
    return out, results, report(out, results)


@pytest.fixture(scope="module")
def facts(study):
    return json.loads((study[0] / "mnist.json").read_text())


def runs(*lasts):
    return [made_up(last) for last in lasts]


# By hand.


def test_the_gain_is_a_paired_interval_of_student():
    ours, theirs = np.array([0.5, 0.7, 0.4, 0.9]), np.array([1.0, 0.9, 0.7, 1.1])
    worse = runs(*(theirs + 1))
    made = cell(no_teleport=worse, reset_alone=runs(*theirs), eq79=runs(*ours), eq79_random=worse)
    *found, control = gain(made, "eq. 79")
    paired = stats.ttest_rel(np.ones(4), ours / theirs)
    interval = paired.confidence_interval(0.95)
    assert found == pytest.approx([np.mean(1 - ours / theirs), interval.low, interval.high])
    assert control == "reset alone"


@pytest.mark.parametrize("best", [0, 1, 2])
@pytest.mark.parametrize("variant", TELEPORTS)
def test_the_control_is_the_best_by_its_mean(variant, best):
    """One seed of another control is lower still."""
    controls = [runs(0.1, 3.0), runs(0.1, 3.0), runs(0.1, 3.0)]
    controls[best] = runs(1.0, 1.0)
    drawn = f"{variant.split(',')[0]}, random g"
    names = ("no teleport", "reset alone", drawn)
    made = cell()
    made.variants.update({**dict(zip(names, controls, strict=True)), variant: runs(0.5, 0.5)})
    mean, low, high, control = gain(made, variant)
    assert control == names[best]
    assert (mean, low, high) == pytest.approx((0.5, 0.5, 0.5))


@pytest.mark.parametrize("lasts", [(math.nan, math.nan), (math.nan, 0.1)])
def test_a_control_that_diverged_is_not_the_best(lasts):
    made = cell(no_teleport=runs(*lasts), reset_alone=runs(4.0, 4.0), rescaling=runs(3.0, 3.0))
    mean, low, high, control = gain(made, "rescaling")
    assert control == "reset alone"
    assert (mean, low, high) == pytest.approx((0.25, 0.25, 0.25))


def test_the_random_g_of_another_action_is_no_control():
    made = cell(no_teleport=runs(1.0, 2.0), reset_alone=runs(2.0, 2.0), rescaling=runs(1.0, 1.0))
    made.variants["eq. 79, random g"] = runs(0.1, 0.1)
    assert gain(made, "rescaling")[3] == "no teleport"


def test_a_gain_of_one_seed_has_no_interval():
    made = cell(no_teleport=runs(2.0), reset_alone=runs(4.0), rescaling=runs(3.0))
    mean, low, high, control = gain(made, "rescaling")
    assert (mean, control) == (-0.5, "no teleport")
    assert math.isnan(low)
    assert math.isnan(high)


@pytest.mark.parametrize(("images", "steps"), [(200, 20), (201, 22), (220, 22)])
def test_the_fraction_is_the_costlier_teleport_over_a_full_epoch(images, steps):
    """Two epochs of minibatches of 20; a full epoch has 2500."""
    plain = [made_up(1.0, seconds) for seconds in (4.0, 2.0, 3.0)]
    cheap = [made_up(1.0, 9.0, teleport_seconds=s) for s in (10.0, 30.0, 20.0)]
    dear = [made_up(1.0, 9.0, teleport_seconds=s) for s in (40.0, 60.0, 50.0)]
    control = [made_up(1.0, 9.0, teleport_seconds=1e6)] * 3
    made = cell(images, no_teleport=plain, eq79=cheap, rescaling=dear, reset_alone=control)
    assert made.epoch_seconds() == pytest.approx(3.0 / steps * 2500)
    assert teleport_epoch_fraction(made) == pytest.approx(50 / (3.0 / steps * 2500))
    del made.variants["rescaling"]
    assert teleport_epoch_fraction(made) == pytest.approx(20 / (3.0 / steps * 2500))


# The study.


def test_the_study_has_every_variant_of_every_optimizer(study):
    _, results, _ = study
    assert results.keys() == VARIANTS.keys() == {"paper", "tuned"}
    for setting, cells in results.items():
        assert list(cells) == list(TINY.optimizers)
        for made in cells.values():
            assert list(made.variants) == list(VARIANTS[setting])
            assert made.images == TINY.images
            assert all(len(each) == TINY.seeds for each in made.variants.values())
            first, second = final(made.variants["no teleport"])
            assert first != second


def test_seeds_start_alike_and_a_teleport_leaves_the_first_epoch_of_the_tuned_alone(study):
    for cells in study[1].values():
        for made in cells.values():
            plain = made.variants["no teleport"]
            for each in made.variants.values():
                for ran, other in zip(each, plain, strict=True):
                    assert ran.train[0] == other.train[0]
    for made in study[1]["tuned"].values():
        for each in made.variants.values():
            for ran, other in zip(each, made.variants["no teleport"], strict=True):
                assert ran.train[1] == other.train[1]


def test_the_rates_of_the_paper_and_of_the_sweep_are_used(study, facts):
    for name in TINY.optimizers:
        assert facts["paper"][name]["rate"] == PAPER_RATES[name]
        assert facts["tuned"][name]["rate"] in TINY.rates
    plans = [json.loads(path.read_text())["plan"] for path in (study[0] / "runs").iterdir()]
    moved = [p["teleport"] for p in plans if p["teleport"] and p["teleport"]["rate"]]
    assert {t["epoch"] for t in moved} == {PAPER_EPOCHS[name] for name in TINY.optimizers}
    assert {t["rate"] for t in moved} == {5e-2}


def test_the_json_is_whole(facts):
    for setting, cells in facts.items():
        for made in cells.values():
            assert 0 < made["teleport_epoch_fraction"] < math.inf
            assert 0 < made["epoch_seconds"] < math.inf
            assert made["runs"].keys() == VARIANTS[setting].keys()
            assert made["gains"].keys() == set(TELEPORTS) & VARIANTS[setting].keys()
            for mean, low, high, control in made["gains"].values():
                assert low <= mean <= high
                assert control in made["runs"]
            for each in made["runs"].values():
                assert len(each) == TINY.seeds
                for ran in each:
                    for curve in ("train", "test", "accuracy", "seconds"):
                        assert len(ran[curve]) == TINY.epochs + 1
                        assert all(math.isfinite(value) for value in ran[curve])


def test_the_picture_is_a_png(study):
    assert (study[0] / "mnist.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_the_legend_names_every_line_that_some_panel_draws():
    drawn = {name for variants in VARIANTS.values() for name in variants} & STYLES.keys()
    labels = [str(handle.get_label()) for handle in legend_handles(VARIANTS["tuned"])]
    assert drawn <= set(labels)
    assert [label for label in labels if "test loss" in label]
    assert "rescaling" not in [str(h.get_label()) for h in legend_handles(VARIANTS["paper"])]


def test_the_table_has_a_row_for_each_variant(study):
    out, _, table = study
    assert (out / "tables" / "mnist.md").read_text() == table
    heading, _, *lines = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()
    )
    assert {len(line) for line in lines} == {len(heading)}
    expected = [
        (setting, name, variant)
        for setting, variants in VARIANTS.items()
        for name in TINY.optimizers
        for variant in variants
    ]
    assert [(line[0], line[1], line[3]) for line in lines] == expected
    for line in lines:
        named = dict(zip(heading, line, strict=True))
        assert bool(named["that control"]) == (named["variant"] in TELEPORTS)
        assert ("->" in line[9]) == ("eq." in line[3] or "rescaling" in line[3])


def test_a_study_that_is_there_is_read(study, tmp_path):
    out, _, table = study
    kept = {path: path.stat().st_mtime_ns for path in (out / "runs").iterdir()}
    again = mnist(out, dataset(tmp_path / "images"), TINY)
    assert report(tmp_path, again) == table
    assert (tmp_path / "mnist.json").read_bytes() == (out / "mnist.json").read_bytes()
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").iterdir()} == kept
