"""A run that was killed and resumed ends with the bytes of a run that was left alone."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from metaopt import storage
from metaopt.cli.train import entry
from metaopt.errors import UserError
from metaopt.learned.checkpoint import load_meta_optimizer, read_checkpoint, write_checkpoint
from metaopt.learned.meta_optimizer import MetaOptimizerSpec
from metaopt.training import run as run_module
from metaopt.training.run import run_training
from metaopt.training.spec import TrainingSpec
from metaopt.training.state import pack, unpack
from metaopt.training.trainer import Trainer

SCRIPT = Path(__file__).parent.parent / "train_meta.py"
FILES = ("last.safetensors", "best.safetensors", "previous.safetensors")
WRITES = 2 * 4  # four validations, two files each
BATCHES = 8


class Killed(BaseException):
    """No ``except Exception`` may stop it."""


def make_trainer(**fields) -> Trainer:
    """A run whose best networks are not its last: the rates are far too high."""
    spec = {
        "trajectories": BATCHES, "batch_size": 1, "steps": 4, "window": 2, "widths": (8, 10),
        "validation_every": 2, "validation_problems": 2, "validation_at": (2, 4),
        "validation_families": (), "learning_rate_update": 0.3, "learning_rate_element": 0.1,
        "average": 0.3, **fields,
    }  # fmt: skip
    return Trainer(MetaOptimizerSpec(hidden=4), TrainingSpec(**spec))


def contents(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in FILES if (out / name).exists()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed")
    run_training(make_trainer(), out, resume=False, overwrite=False)
    return contents(out)


def resume(out: Path) -> dict[str, bytes]:
    run_training(make_trainer(), out, resume=True, overwrite=False)
    assert sorted(p.name for p in out.iterdir()) == sorted((*FILES, "tensorboard", ".lock"))
    return contents(out)


def kill_at_call(monkeypatch, target, name: str, call: int, when: str) -> None:
    """Make the ``call``-th call of ``target.name`` raise, before or after what it does."""
    real, calls = getattr(target, name), 0

    def killing(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == call and when == "before":
            raise Killed
        result = real(*arguments, **options)
        if calls == call:
            raise Killed
        return result

    monkeypatch.setattr(target, name, killing)


def killed_run(monkeypatch, out: Path, *place) -> None:
    with monkeypatch.context() as patched:
        kill_at_call(patched, *place)
        with pytest.raises(Killed):
            run_training(make_trainer(), out, resume=True, overwrite=False)
    for name in contents(out):
        read_checkpoint(out / name)  # whatever there is, is whole


def test_the_reference_run_leaves_best_and_last_apart(undisturbed, tmp_path):
    """Otherwise the tests below would not notice a best that is lost."""
    assert undisturbed.keys() == set(FILES)
    for name, data in undisturbed.items():
        (tmp_path / name).write_bytes(data)
    last, best = (load_meta_optimizer(tmp_path / name).state_dict() for name in FILES[:2])
    assert not torch.equal(last["update.lstm.head_bias"], best["update.lstm.head_bias"])


def test_the_same_run_twice_leaves_the_same_bytes(undisturbed, tmp_path):
    run_training(make_trainer(), tmp_path, resume=False, overwrite=False)
    assert contents(tmp_path) == undisturbed


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("call", range(1, WRITES + 1))
def test_killed_at_any_checkpoint_write(monkeypatch, undisturbed, tmp_path, call, when):
    killed_run(monkeypatch, tmp_path, run_module, "write_checkpoint", call, when)
    assert resume(tmp_path) == undisturbed


@pytest.mark.parametrize("call", [1, 2, 4, 5])
def test_killed_between_the_writing_of_a_file_and_its_renaming(
    monkeypatch, undisturbed, tmp_path, call
):
    killed_run(monkeypatch, tmp_path, storage.os, "replace", call, "before")
    assert resume(tmp_path) == undisturbed


@pytest.mark.parametrize("call", [1, 4, 7])
def test_killed_in_the_middle_of_training(monkeypatch, undisturbed, tmp_path, call):
    killed_run(monkeypatch, tmp_path, Trainer, "train_batch", call, "after")
    assert resume(tmp_path) == undisturbed


def test_killed_again_and_again(monkeypatch, undisturbed, tmp_path):
    for call in (2, 3, 3, 2):
        killed_run(monkeypatch, tmp_path, run_module, "write_checkpoint", call, "before")
    assert resume(tmp_path) == undisturbed


def test_a_lost_or_stale_best_is_written_again_from_last(undisturbed, tmp_path):
    run_training(make_trainer(), tmp_path, resume=False, overwrite=False)
    for damage in (lambda p: p.unlink(), lambda p: p.write_bytes(b"stale")):
        damage(tmp_path / "best.safetensors")
        assert resume(tmp_path) == undisturbed


def test_another_training_or_network_spec_is_refused_and_nothing_is_written(tmp_path):
    run_training(make_trainer(), tmp_path, resume=False, overwrite=False)
    before = contents(tmp_path)
    other = Trainer(MetaOptimizerSpec(hidden=5), make_trainer().spec)
    for trainer, field in ((make_trainer(clip=0.5), "clip"), (other, "hidden")):
        with pytest.raises(UserError, match=rf"another {field} \({field}: .* then, .* now\)"):
            run_training(trainer, tmp_path, resume=True, overwrite=False)
    assert contents(tmp_path) == before


FLAGS = {
    "hidden": "4", "widths": "[4]", "steps": "10", "window": "5", "batch_size": "2",
    "trajectories": "16", "validation_every": "2", "validation_problems": "2",
    "validation_at": "[5,10]", "validation_families": "[]", "threads": "1",
}  # fmt: skip


def command(out: Path, *switches: str, **changed: str) -> list[str]:
    flags = {**FLAGS, **changed, "out": str(out)}
    return [str(SCRIPT), *(part for k, v in flags.items() for part in (f"--{k}", v)), *switches]


@pytest.fixture
def cli(monkeypatch, capsys):
    """Run the script in this process: (exit code, what it says on stderr but for progress)."""

    def call(*arguments, **changed) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", command(*arguments, **changed))
        capsys.readouterr()
        code = entry()
        return code, capsys.readouterr().err

    threads = torch.get_num_threads()
    yield call
    torch.set_num_threads(threads)


def snapshot(out: Path) -> dict[str, tuple[bytes, int]]:
    files = [p for p in sorted(out.rglob("*")) if p.is_file() and p.name != ".lock"]
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def test_a_process_killed_by_sigkill_and_resumed_ends_with_the_same_bytes(cli, tmp_path):
    killed, alone = tmp_path / "killed", tmp_path / "alone"
    process = subprocess.Popen(
        [sys.executable, *command(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not (killed / "last.safetensors").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    facts = read_checkpoint(killed / "last.safetensors").facts
    assert 0 < facts["trajectories"] < int(FLAGS["trajectories"])

    resumed = subprocess.run(
        [sys.executable, *command(killed, "--resume")], capture_output=True, text=True, check=False
    )
    assert resumed.returncode == 0, resumed.stderr
    assert "best validation score" in resumed.stdout
    assert cli(alone)[0] == 0
    assert contents(killed) == contents(alone)
    assert contents(alone).keys() == set(FILES)


SHORT = {"trajectories": "4"}


def test_the_switches_of_the_command_line(cli, tmp_path):
    out = tmp_path / "deep" / "run"
    code, said = cli(out, "--resume", **SHORT)  # nothing there yet: it starts, and says so
    assert code == 0
    assert said.startswith(f"no checkpoint to resume in {str(out)!r}: starting anew\n")
    finished = snapshot(out)
    assert len([name for name in finished if name.endswith(".safetensors")]) == 3

    assert cli(out, "--resume", **SHORT)[0] == 0  # finished: nothing to do, nothing changed
    assert snapshot(out) == finished
    assert run_training(make_trainer(), tmp_path / "other", resume=True, overwrite=False) is False
    assert run_training(make_trainer(), tmp_path / "other", resume=True, overwrite=False) is True

    code, message = cli(out, **SHORT)
    assert code == 2
    assert message.startswith("error: expected an --out without a run")
    assert message.count("\n") == 1

    code, message = cli(out, "--resume", **{**SHORT, "window": "2"})
    assert code == 2
    assert "window: 5 then, 2 now" in message
    assert message.count("\n") == 1
    assert snapshot(out) == finished

    assert cli(out, "--overwrite", **{**SHORT, "seed": "1"})[0] == 0
    fresh = tmp_path / "fresh"
    assert cli(fresh, **{**SHORT, "seed": "1"})[0] == 0
    assert contents(out) == contents(fresh)
    assert contents(out)[FILES[0]] != finished[str(out / FILES[0])][0]
    assert len(list((out / "tensorboard").iterdir())) == 1


def test_an_action_that_cannot_act_on_the_tasks_is_refused_before_a_run_is_deleted(cli, tmp_path):
    run_training(make_trainer(), tmp_path, resume=False, overwrite=False)
    finished = contents(tmp_path)
    code, message = cli(tmp_path, "--overwrite", **{**SHORT, "action": "linear"})
    assert code == 2
    assert message.startswith("error: expected an action that can act on problems='regression'")
    assert message.count("\n") == 1
    assert contents(tmp_path) == finished


@pytest.mark.parametrize(
    ("flag", "value"),
    [("steps", "0"), ("steps", "many"), ("update", "nope"), ("colour", "red"), ("threads", "-1")],
)
def test_bad_flags_give_one_line_and_exit_code_2(cli, tmp_path, flag, value):
    code, message = cli(tmp_path / "run", **{flag: value})
    assert code == 2
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert flag in message or value in message
    assert not (tmp_path / "run").exists()


def test_a_run_that_went_back_to_networks_before_any_meta_step_resumes(tmp_path):
    """Adam has no moments then, though meta-steps were made."""
    trainer = make_trainer(rollback=1e-9)
    trainer.validate()
    trainer.best_score = -100.0
    for _ in range(2):
        trainer.train_batch()
    trainer.validate()
    assert (trainer.rollbacks, trainer.meta_steps > 0) == (1, True)
    write_checkpoint(tmp_path / FILES[0], *pack(trainer))
    again = make_trainer(rollback=1e-9)
    unpack(again, read_checkpoint(tmp_path / FILES[0]))
    assert again.rollbacks == 1
    assert not again.adam.state_dict()["state"]
