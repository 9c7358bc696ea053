"""Signals that ask a training to end leave a checkpoint, unless they were ignored at the start."""

import os
import signal

import pytest
from training_cases import command, results

from metaopt import launch
from metaopt.cli.common import guarded
from metaopt.cli.signals import ending
from metaopt.learned.checkpoint import read_checkpoint
from metaopt.training.run import LAST
from metaopt.training.trainer import Trainer

ENDING = ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGXCPU"]


@pytest.fixture(autouse=True)
def as_on_a_terminal():
    """Tests that a script runs in its background, or nohup, start with some signals ignored."""
    plain = dict.fromkeys(ENDING[1:], signal.SIG_DFL) | {"SIGINT": signal.default_int_handler}
    before = {name: signal.signal(signal.Signals[name], own) for name, own in plain.items()}
    yield
    for name, own in before.items():
        signal.signal(signal.Signals[name], own)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    assert command(out) == 0
    return results(out)


@pytest.fixture
def sent_at_the_third_batch(monkeypatch):
    """A function that has this process send itself a signal while it trains."""

    def send(number: signal.Signals) -> None:
        real = Trainer.train_batch

        def train_batch(trainer):
            if trainer.trajectories == 2:
                os.kill(os.getpid(), number)
            return real(trainer)

        monkeypatch.setattr(Trainer, "train_batch", train_batch)

    yield send
    monkeypatch.undo()


@pytest.mark.parametrize("name", ENDING)
def test_a_signal_ends_a_training_with_a_checkpoint_that_resumes_to_the_same_bytes(
    sent_at_the_third_batch, monkeypatch, undisturbed, tmp_path, capsys, name
):
    number = signal.Signals[name]
    before = signal.getsignal(number)
    sent_at_the_third_batch(number)
    assert command(tmp_path) == 128 + number
    assert signal.getsignal(number) == before
    assert capsys.readouterr().err.splitlines()[-1] == (
        "interrupted at trajectory 3, which is kept; run again with --resume to go on from the "
        "last checkpoint"
    )
    assert read_checkpoint(tmp_path / LAST).facts["trajectories"] == 3
    monkeypatch.undo()
    assert command(tmp_path, "--resume") == 0
    assert results(tmp_path) == undisturbed


def test_the_end_of_torchrun_ends_a_training_with_a_checkpoint(monkeypatch, tmp_path):
    """It was killed, or got a signal that it does not pass on."""
    assert not launch.launcher_ended()
    monkeypatch.setattr(launch, "_PARENT", -1)
    assert not launch.launcher_ended()  # of a shell
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert command(tmp_path) == 128 + signal.SIGTERM
    assert read_checkpoint(tmp_path / LAST).facts["trajectories"] == 1


@pytest.mark.parametrize("name", ENDING[2:])
def test_a_signal_that_was_ignored_at_the_start_does_not_end_a_training(
    sent_at_the_third_batch, undisturbed, tmp_path, name
):
    """As SIGHUP is under nohup."""
    number = signal.Signals[name]
    before = signal.signal(number, signal.SIG_IGN)
    try:
        sent_at_the_third_batch(number)
        assert command(tmp_path) == 0
    finally:
        signal.signal(number, before)
    assert results(tmp_path) == undisturbed


@pytest.mark.parametrize("name", ENDING)
def test_a_command_that_does_not_train_ends_in_one_line(capsys, name):
    number = signal.Signals[name]
    assert guarded(lambda _: os.kill(os.getpid(), number), " later")() == 128 + number
    assert capsys.readouterr().err == "interrupted; run again later\n"


def test_windows_has_fewer_signals(monkeypatch):
    for name in ENDING[2:]:
        monkeypatch.delattr(signal, name)
    assert ending() == [signal.SIGTERM]
