"""What a training says as it goes: few lines in a log, a bar on a terminal, and never an end."""

import io
import re
import shlex
import sys

import pytest
from training_cases import command, make, results

from metaopt.cli import evaluate
from metaopt.cli.train import evaluation
from metaopt.training import progress as progress_module
from metaopt.training.progress import LINES, Progress
from metaopt.training.run import run_training

NUMBERS = {"final_loss": 0.25}
SCORED = {**NUMBERS, "score": -1.5}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Gone(io.StringIO):
    """A pipe whose reader has ended, or another stream that cannot be written."""

    def __init__(self, error: Exception, terminal: bool) -> None:
        super().__init__()
        self.error, self.terminal = error, terminal

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        raise self.error


def lines(capsys, trajectories: int, every: int) -> list[str]:
    trainer = make(trajectories=trajectories)
    shown = Progress(trainer)
    for done in range(1, trajectories + 1):
        trainer.trajectories = done
        trainer.best_score = -2.0
        shown.show(SCORED if done % every == 0 or trainer.finished else NUMBERS)
    shown.close()
    return capsys.readouterr().err.splitlines()


def test_a_log_has_a_line_for_each_validation(capsys):
    said = lines(capsys, 30, 10)
    assert [line.split(":")[0] for line in said] == [f"trajectory {n} of 30" for n in (10, 20, 30)]
    assert "validation score -1.500 (best -2.000), loss 2.5e-01, 0 skipped; 0 s, about" in said[0]


@pytest.mark.parametrize(("trajectories", "every"), [(200, 4), (1000, 1), (7, 1)])
def test_a_log_is_not_flooded_where_there_are_many_validations(capsys, trajectories, every):
    said = lines(capsys, trajectories, every)
    assert len(said) == min(LINES, trajectories // every)
    assert said[-1].startswith(f"trajectory {trajectories} of {trajectories}: ")


def test_a_log_shows_life_where_validations_are_rare(monkeypatch, capsys):
    assert len(lines(capsys, 9, 9)) == 1
    monkeypatch.setattr(progress_module, "INTERVAL", 0.0)
    said = lines(capsys, 9, 9)
    assert len(said) == 9
    assert said[0].startswith("trajectory 1 of 9: loss 2.5e-01")  # no score yet


def test_a_terminal_shows_the_score_beside_a_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    trainer = make(trajectories=2)
    shown = Progress(trainer)
    trainer.trajectories, trainer.best_score = 2, -2.0
    shown.show(SCORED)
    shown.close()
    drawn = terminal.getvalue()
    assert "2/2" in drawn
    assert "score=-1.500, best=-2.000, loss=2.5e-01, skipped=0" in drawn


def test_only_the_first_process_shows_anything(monkeypatch, capsys):
    trainer = make(trajectories=1)
    trainer.trajectories = 1
    Progress(trainer, shown=False).show(SCORED)
    assert capsys.readouterr().err == ""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    run_training(make(trajectories=3), out, resume=False, overwrite=False)
    return results(out)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "full"), ValueError("closed")])
def test_a_stream_that_nobody_reads_does_not_end_a_training(
    monkeypatch, undisturbed, tmp_path, error, terminal
):
    monkeypatch.setattr(sys, "stderr", Gone(error, terminal))
    assert run_training(make(trajectories=3), tmp_path, resume=False, overwrite=False) is False
    assert results(tmp_path) == undisturbed


def test_a_training_without_stderr_says_nothing_on_stdout(
    monkeypatch, undisturbed, tmp_path, capsys
):
    monkeypatch.setattr(sys, "stderr", None)
    assert run_training(make(trajectories=3), tmp_path, resume=False, overwrite=False) is False
    assert capsys.readouterr().out == ""
    assert results(tmp_path) == undisturbed


def test_a_training_says_where_its_curves_are_and_what_to_type_next(tmp_path, capsys, monkeypatch):
    out = tmp_path / "a run"
    assert command(out, trajectories=1, validation_every=1) == 0
    printed = capsys.readouterr()
    first = printed.err.splitlines()[0]
    folder = shlex.split(first.rpartition("--logdir ")[2])
    assert folder == [str(out / "tensorboard")]
    assert list((out / "tensorboard").glob("events*"))
    last = printed.out.splitlines()[-1]
    assert re.match(r"to evaluate it: metaopt-eval --methods ", last)
    _, *arguments = shlex.split(last.partition(": ")[2])
    values = evaluate.build_parser().parse_args(arguments)
    for name in values.methods.split(","):
        evaluate.resolve(name)
    assert values.out == str(out / "eval")


@pytest.mark.parametrize(("typed", "script"), [
    (["python3", "train_meta.py"], ["python3", "eval_meta.py"]),
    ([".venv/bin/python", "../train_meta.py"], [".venv/bin/python", "../eval_meta.py"]),
    (["/bin/metaopt-train", "/bin/metaopt-train"], ["metaopt-eval"]),
])  # fmt: skip
def test_the_next_command_is_typed_as_the_last_one_was(monkeypatch, tmp_path, typed, script):
    monkeypatch.setattr(sys, "orig_argv", [*typed, "--out", "x"])
    monkeypatch.setattr(sys, "argv", typed[1:])
    methods = ["--methods", f"{tmp_path}/best.safetensors,adam", "--out", f"{tmp_path}/eval"]
    assert evaluation(tmp_path, []) == [*script, *methods]
    imported = evaluation(tmp_path, ["a.b", "c"])
    assert imported == [*script, "--import", "a.b", "--import", "c", *methods]
