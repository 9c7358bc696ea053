"""The zoo: its cells, its scores, and that it goes on from what is there."""

import json
import math

import pytest
import torch

from metaopt.errors import UserError
from metaopt.training.distributions import TASK_DISTRIBUTIONS
from studies.zoo import report
from studies.zoo import teleport as teleport_study
from studies.zoo.__main__ import main, write_report
from studies.zoo.cells import CELLS, Cell, shuffled
from studies.zoo.figure import zoo_figure
from studies.zoo.rivals import Contender, contenders
from studies.zoo.runs import measure, run
from studies.zoo.training import CellTraining

LEARNED = ("lstm_update_tele", "lstm_whitened")


def kept_of(losses, best, above=0):
    """What a file holds where each method has one run: losses of two networks at each step."""
    return {
        name: {
            "": {
                "at": dict(zip(("0", "10", "30", "100"), rows, strict=True)),
                "curve": [0.0, -1.0],
                "above": above,
                "seconds": 1.0,
                "seconds_to_goal": [0.5, None],
                "lowest": [min(own) for own in zip(*rows, strict=True)],
            }
        }
        for name, rows in losses.items()
    } | {"best known": best}


def test_there_are_324_cells_with_names_and_sizes_of_their_own():
    assert len({cell.name for cell in CELLS}) == len(CELLS) == 324
    assert sorted(map(CELLS.index, shuffled())) == list(range(324))
    assert shuffled() == shuffled() != list(CELLS)
    families = [cell.family() for cell in CELLS]
    assert {f.hidden for f in families} >= {16, 24, 32}
    assert all(8 <= f.input <= 20 and 1 <= f.output <= 4 for f in families)
    for cell in CELLS[::25]:
        tasks = cell.family().sample([0, 1])
        assert len(tasks.chain.activations) == cell.depth
        assert tasks.chain.biased[0] == cell.bias
        assert tasks().shape == (2,)
    twelve = Cell(True, "relu", 2, 12.0, "classes").family()
    assert twelve.samples == 12 * twelve.hidden
    assert twelve.loss == "cross_entropy"


def test_losses_that_vanish_count_as_they_are_and_others_by_what_is_above_the_best():
    rows = [[10.0, 10.0], [1.0, 1.0], [1e-3, 2.0], [1e-20, 1.5]]
    kept = kept_of({"a": rows}, [1e-15, 1.0])
    own = kept["a"][""]
    assert report.best_known(kept).tolist() == [1e-20, 1.0]
    assert report.score(kept, own, "30") == pytest.approx(math.sqrt(1e-4 * 0.1))
    assert report.score(kept, own, "100") == pytest.approx(math.sqrt(1e-12 * 0.05))
    assert report.least_score(kept, own) == pytest.approx(math.sqrt(1e-12 * 1e-6))


def test_the_best_rival_is_found_and_a_tie_is_won():
    methods = {"ours": Contender({}), "a": Contender({}, rival=True), "b": Contender({})}
    ours = [[1.0, 1.0], [0.5, 0.5], [1e-14, 1e-14], [1e-14, 1e-14]]
    rival = [[1.0, 1.0], [0.5, 0.5], [1e-13, 1e-13], [1e-6, 1e-6]]
    beside = [[1.0, 1.0], [0.1, 0.1], [0.0, 0.0], [0.0, 0.0]]
    measured = {CELLS[0]: kept_of({"ours": ours, "a": rival, "b": beside}, [0.0, 0.0], above=1)}
    (row,) = report.compared(measured, methods, "ours")
    assert row["30"] == (pytest.approx(1e-12), pytest.approx(1e-12), "a")
    line = report.summary(measured, methods, ["ours"]).splitlines()[2]
    assert "100.0 % of 1 | 100.0 % of 1 | 1.0e-06 | 1.0e-06 | 1e-06 | 50.00 %" in line
    assert CELLS[0].name not in report.lost(measured, methods, "ours")
    others = {"a": Contender({}), "ours": Contender({}, rival=True)}
    assert CELLS[0].name in report.lost(measured, others, "a")
    assert zoo_figure(measured, methods, "ours").startswith(b"\x89PNG")


def test_networks_one_by_one_end_as_they_do_together():
    family = Cell(True, "tanh", 2, 0.5, "teacher").family("float64")

    def build(tasks):
        return torch.optim.SGD(tasks.parameters(), 1e-3)

    together, _ = run(family, build, [1, 2], 4)
    apart, _ = run(family, build, [1, 2], 4, one_by_one=True)
    torch.testing.assert_close(together, apart)
    ended, _ = run(family, build, [1, 2], 4, end=10.0)
    assert len(ended) == 2  # at once it is below ten times its start


def test_a_cell_is_measured_once_and_new_methods_are_added(tmp_path):
    path = tmp_path / "cell.json"
    cell = Cell(True, "relu", 2, 0.5, "classes")
    methods = contenders({"lstm_whitened": "lstm_whitened"}, soap=False)
    few = {name: methods[name] for name in ("lstm_whitened", "adam")}
    measure(cell, few, path, quick=True)
    first = json.loads(path.read_text())
    assert first.keys() == {"lstm_whitened", "adam", "best known"}
    more = few | {name: methods[name] for name in ("kfac", "levenberg_marquardt")}
    measure(cell, more, path, quick=True)
    then = json.loads(path.read_text())
    assert then.keys() == first.keys() | {"kfac"}  # no squared error, so no Levenberg-Marquardt
    assert {name: then[name] for name in first} == first


def test_the_command_runs_and_writes_its_report(tmp_path, capsys):
    main(["--out", str(tmp_path), "--quick", "--learned", *LEARNED])
    files = list((tmp_path / "cells").glob("*.json"))
    assert {path.stem for path in files} == {cell.name for cell in shuffled()[:2]}
    for path in files:  # a quick run has ten steps
        kept = json.loads(path.read_text())
        for settings in kept.values():
            for own in settings.values() if isinstance(settings, dict) else ():
                own["at"] |= {"30": own["at"]["10"], "100": own["at"]["10"]}
        path.write_text(json.dumps(kept))
    write_report(tmp_path, contenders({name: name for name in LEARNED}), list(LEARNED))
    printed = capsys.readouterr().out
    for table in ("zoo", "zoo_methods", "zoo_lost"):
        assert (tmp_path / "tables" / f"{table}.md").read_text() in printed
    assert (tmp_path / "zoo.png").read_bytes().startswith(b"\x89PNG")


def test_a_number_of_cells_that_there_are_not_is_refused():
    with pytest.raises(UserError, match="expected 1 to 324 cells, got 400"):
        main(["--cells", "400"])


@pytest.fixture
def teleport():
    """The study of m2, whose tasks are registered for as long as it is used."""
    TASK_DISTRIBUTIONS["zoo_cell"] = CellTraining
    yield teleport_study
    del TASK_DISTRIBUTIONS["zoo_cell"]


def test_m2_acts_where_its_group_is_exact_alone(teleport):
    by_name = {cell.name: cell for cell in CELLS}
    assert teleport.acts(by_name["none-leaky_relu-2-0.5-teacher"])
    assert not teleport.acts(by_name["none-leaky_relu-2-12-teacher"])
    assert not teleport.acts(by_name["bias-gelu-2-0.5-teacher"])


def test_optimizers_are_trained_anew_on_the_networks_of_one_cell(teleport):
    cell = CELLS[40]
    for name in (teleport.WITH, teleport.WITHOUT):
        recipe = teleport.recipe(name, cell, 40)
        assert recipe.networks.element == ("spectral" if name == teleport.WITH else "none")
        tasks = recipe.training.tasks
        drawn = tasks.draw(3, torch.Generator().manual_seed(0))
        assert drawn.family == cell.family("float64")
        assert len(set(drawn.seeds)) == 3
        assert tasks.validation(2) == [(cell.family("float64"), 2)]
        assert (recipe.training.trajectories, recipe.training.validation_every) == (40, 10)


def test_the_table_of_m2_counts_cells(teleport):
    means = {teleport.WITH: [0.5, 0.1, 0.1, 0.1, 0.1], teleport.WITHOUT: [1.0, 0.1, 0.1, 0.1, 0.1]}
    other = {teleport.WITH: [0.2, 0.2, 0.1, 0.1, 0.1], teleport.WITHOUT: [0.1, 0.1, 0.1, 0.1, 0.1]}
    text = teleport.table(dict(zip(CELLS, (means, other), strict=False)))
    assert f"| {CELLS[0].name} | 0.5 / 1 | 0.1 / 0.1 |" in text
    assert "| with m2 over without, geometric mean | 1.00 | 1.41 | 1.00 |" in text
    assert "| lower / higher with m2 by more than 10% | 1 / 1 | 0 / 1 | 0 / 0 |" in text
