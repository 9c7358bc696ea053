"""The README's table can be made again by anyone, and drawn results are those that were kept."""

import json
import math
from pathlib import Path

import pytest
import torch

from metaopt.cli import evaluate as command
from metaopt.cli import verify as verify_module
from metaopt.cli.verify import verify
from metaopt.errors import UserError
from metaopt.evaluation.evaluate import Result, evaluate
from metaopt.evaluation.methods import resolve
from metaopt.evaluation.reference import WORST, Compared, compare
from metaopt.evaluation.rollout import Trajectory
from metaopt.tasks import RegressionFamily, first_seeds

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("where", "shown", "found", "same"), [
    ("10", 1.23, 1.2345, True), ("10", 1.23, 1.3, False), (WORST, 1.23, 1.3, True),
    (WORST, 1.0, 1.2, False), ("100", 3e-13, 9e-13, True), ("100", 3e-13, 4e-12, False),
    ("100", 3e-13, 2e-9, False), ("100", 2e-9, 3e-9, False), ("10", math.inf, math.inf, True),
    ("10", math.inf, 3.0, False), ("10", 3.0, math.nan, False), ("10", 3.0, math.inf, False),
])  # fmt: skip
def test_cells_differ_beyond_their_digits_but_not_where_only_rounding_is_left(
    where, shown, found, same
):
    assert Compared("gd", where, shown, found).same is same


def test_cells_are_geometric_means_and_the_worst_problem():
    losses = torch.tensor([[9.0, 9.0], [1.0, 4.0], [2.0, 8.0]], dtype=torch.float64)
    result = Result(resolve("gd"), Trajectory(losses, losses, losses, losses > 0, 0.0))
    found = compare([result], {"gd": {"1": 2.0, "2": 5.0, WORST: None}})
    assert [(c.where, c.shown, c.found) for c in found] == [
        ("1", 2.0, pytest.approx(2.0)), ("2", 5.0, pytest.approx(4.0)), (WORST, math.inf, 8.0),
    ]  # fmt: skip


def small(monkeypatch, **changed) -> None:
    """A table of two problems and three steps, as this machine makes it but for ``changed``."""
    table = {"problems": 2, "steps": 3, "methods": {"gd@0.0003": {"3": 1.0, WORST: 1.0}}}
    shown = table["methods"]["gd@0.0003"]
    made = evaluate([resolve("gd@0.0003")], RegressionFamily(), first_seeds("test", 2), 3)
    shown |= {cell.where: cell.found for cell in compare(list(made), table["methods"])} | changed
    monkeypatch.setattr(verify_module, "reference", lambda: table)


def test_the_command_says_where_it_differs_and_exits_with_1(monkeypatch, capsys):
    small(monkeypatch)
    capsys.readouterr()
    command.main(["--verify-results"])
    whole = capsys.readouterr().out
    assert whole.splitlines()[-1].startswith(
        "2 of 2 numbers of 1 methods are the README's, within 2 % ("
    )
    small(monkeypatch, **{"3": 123.0})
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        command.main(["--verify-results", "--methods", "gd"])
    assert end.value.code == 1
    *table, first, last = capsys.readouterr().out.splitlines()
    assert len(table) == 2
    assert first.startswith("gd@0.0003, step 3: the README shows 123, this run gave ")
    assert last.startswith("1 of 2 numbers of 1 methods are the README's, within 2 % (")


def test_methods_that_the_table_lacks_are_refused_and_absent_ones_named(monkeypatch, capsys):
    with pytest.raises(UserError, match=r"methods of the README's table.*'nope'"):
        verify(["nope"])
    small(monkeypatch)
    table = verify_module.reference()
    table["methods"]["not_installed@1"] = {"3": 1.0}
    assert verify([])
    assert "extra 'studies': not_installed@1" in capsys.readouterr().err
    with pytest.raises(UserError, match="a method that is installed"):
        verify(["not_installed"])
    for flag in ("--steps", "--problems"):
        with pytest.raises(UserError, match=f"got {flag}"):
            command.main(["--verify-results", flag, "3"])


def test_results_are_drawn_again_without_running_and_damaged_ones_are_not(
    tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    sizes = ["--samples", "3", "--input", "3", "--hidden", "3", "--output", "3"]
    command.main([*sizes, "--methods", "gd", "--problems", "2", "--steps", "3", "--out", str(out)])
    first = capsys.readouterr().out
    pictures = {name: (out / name).read_bytes() for name in (command.FIGURE, command.REPORT)}
    for name in pictures:
        (out / name).unlink()
    monkeypatch.setattr(command, "evaluate", None)  # nothing may be run
    command.main(["--redraw", "--out", str(out)])
    assert capsys.readouterr().out == first
    assert {name: (out / name).read_bytes() for name in pictures} == pictures
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(manifest | {"threads": 7}))
    with pytest.raises(UserError, match=r"manifest\.json.*damaged"):
        command.main(["--redraw", "--out", str(out)])
    with pytest.raises(UserError, match=r"missing"):
        command.main(["--redraw", "--out", str(tmp_path / "nowhere")])
