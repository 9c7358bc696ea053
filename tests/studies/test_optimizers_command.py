"""``python -m studies.optimizers``, in this process."""

import json

import pytest
from data_cases import make_dataset
from image_study_cases import TINY

from metaopt.cli.common import guarded
from metaopt.symmetry.search import GradientAscent
from studies.optimizers import __main__ as optimizers
from studies.optimizers import buffer_policies
from studies.optimizers.mnist import VARIANTS, ImageScale

IMAGES = "train-images-idx3-ubyte"
ONE = ImageScale(100, 20, 1, 1, 1, (1e-2,), ("momentum",))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(optimizers, "QUICK", ONE)


def call(*arguments):
    return guarded(lambda _: optimizers.main([*arguments, "--out", "out"]))()


@pytest.fixture
def complaint(capsys, tmp_path):
    """Runs a command line that must fail and leave nothing; its one line of complaint."""

    def run(*arguments):
        assert call(*arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert line.startswith("error: ")
        assert not (tmp_path / "out").exists()
        return line

    return run


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("adam",), "'adam'"),
        ((), "study"),
        (("mnist", "stray"), "stray"),
        (("mnist", "--colour", "3"), "--colour"),
        (("momentum", "--threads", "-1"), "threads"),
        (("momentum", "--quick", "often"), "quick"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_a_bad_argument_is_named(complaint, arguments, named):
    assert named in complaint(*arguments)


def test_data_that_are_missing(complaint, tmp_path, monkeypatch):
    assert "METAOPT_DATA" in complaint("mnist")
    line = complaint("mnist", "--data-dir", "gone")
    assert "'gone'" in line
    assert IMAGES in line
    monkeypatch.setenv("METAOPT_DATA", str(tmp_path))
    assert str(tmp_path / "mnist") in complaint("mnist")


@pytest.mark.parametrize("damage", [b"", b"hello", None])
def test_data_that_are_damaged(complaint, tmp_path, damage):
    path = make_dataset(tmp_path / "images", "mnist", train=20, test=10) / IMAGES
    path.write_bytes(path.read_bytes()[:-1] if damage is None else damage)
    line = complaint("mnist", "--data-dir", "images")
    assert IMAGES in line


def test_mnist_from_files_to_tables(tmp_path, capsys, monkeypatch):
    make_dataset(tmp_path / "images", "mnist", train=150, test=30, gzipped=True)
    assert call("mnist", "--quick", "--data-dir", "images") == 0
    table = capsys.readouterr().out
    assert (tmp_path / "out" / "tables" / "mnist.md").read_text() == table[:-1]
    assert len(table.splitlines()) == 2 + sum(map(len, VARIANTS.values())) + 1
    assert (tmp_path / "out" / "mnist.png").read_bytes().startswith(b"\x89PNG")
    facts = json.loads((tmp_path / "out" / "mnist.json").read_text())
    assert [list(cells) for cells in facts.values()] == [["momentum"]] * 2
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "runs").iterdir()}
    monkeypatch.setenv("METAOPT_DATA", str(tmp_path))
    (tmp_path / "images").rename(tmp_path / "mnist")
    assert call("mnist", "--quick") == 0
    assert capsys.readouterr().out == table
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "runs").iterdir()} == kept


def test_the_scale_is_full_unless_it_has_to_be_quick(tmp_path, monkeypatch):
    scales = []
    monkeypatch.setattr(optimizers, "mnist", lambda out, data, scale: scales.append(scale))
    monkeypatch.setattr(optimizers, "report", lambda out, results: "")
    monkeypatch.setattr(optimizers, "QUICK", TINY)
    make_dataset(tmp_path / "mnist", "mnist", train=20, test=10)
    for flags in ((), ("--quick",)):
        assert call("mnist", "--data-dir", "mnist", *flags) == 0
    assert scales == [ImageScale(), TINY]


@pytest.mark.parametrize("name", buffer_policies.STUDIES)
def test_the_other_studies_need_no_data(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(buffer_policies, "EPOCHS", 7)
    monkeypatch.setattr(buffer_policies, "SHOWN", (5, 6, 7))
    monkeypatch.setattr(buffer_policies, "RATES", (1e-3,))
    monkeypatch.setattr(buffer_policies, "GUARDED", GradientAscent(1))
    assert call(name, "--quick") == 0
    table = capsys.readouterr().out
    assert "of 2 |" in table
    assert (tmp_path / "out" / "tables" / f"{name}.md").read_text() == table[:-1]
