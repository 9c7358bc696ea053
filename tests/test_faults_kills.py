"""A training that is killed at any moment and resumed ends with the bytes of one left alone."""

import json
import os
import signal
import time

import pytest
from soak_cases import FILES, LONG, SOAK, TRAIN, contents, flags, form, start, train_here

from metaopt.learned.checkpoint import read_checkpoint

KILLS = form(4, 50)
pytestmark = pytest.mark.soak

# One process that has imported everything forks a child for each training: a child is killed
# after a random time, and another one resumes.
FORKING = """
import json, os, random, signal, sys, time
from pathlib import Path
import higher, torch._dynamo, torch.utils.tensorboard  # which a training imports when it starts
from metaopt.cli.train import main

def child(arguments):
    pid = os.fork()
    if pid == 0:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
        try:
            main(arguments)
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    return pid

def finish(pid):
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)

def writing(out):
    return any(name.startswith(".") and "safetensors" in name for name in listed(out))

def listed(out):
    return os.listdir(out) if out.exists() else []

def wait(happened, pid):
    ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while not happened() and os.waitid(os.P_PID, pid, ended) is None:
        time.sleep(1e-4)

folder, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
arguments = sys.argv[4:]
draw = random.Random(seed)
begun = time.perf_counter()
assert finish(child([*arguments, "--out", str(folder / "alone")])) == 0
whole = time.perf_counter() - begun
for k in range(kills):
    out = folder / f"killed{k}"
    pid = child([*arguments, "--out", str(out)])
    if k % 2:  # while a checkpoint is being written, the n-th that is seen
        for write in range(draw.randint(1, 4)):
            wait(lambda: writing(out), pid)
            if write:
                wait(lambda: not writing(out), pid)
                wait(lambda: writing(out), pid)
    else:
        time.sleep(draw.uniform(0.05, 1.0) * whole)
    os.kill(pid, signal.SIGKILL)
    died = finish(pid) == -signal.SIGKILL
    left = sorted(name for name in listed(out) if name[0] != ".")
    hidden = sorted(name for name in listed(out) if name[0] == "." and "safetensors" in name)
    code = finish(child([*arguments, "--resume", "--out", str(out)]))
    print(json.dumps([died, left, hidden, code]), flush=True)
"""


def test_killed_by_sigkill_at_random_moments_and_resumed(tmp_path):
    arguments = flags(tmp_path, trajectories=form("24", "48"), validation_every="4")[:-2]
    process = start("-c", FORKING, str(tmp_path), str(KILLS), "1", *arguments)
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    alone = contents(tmp_path / "alone")
    assert alone.keys() == set(FILES)
    trials = [json.loads(line) for line in output.splitlines()]
    assert len(trials) == KILLS
    same = [contents(tmp_path / f"killed{k}") == alone for k in range(KILLS)]
    assert all(same), [trial for trial, ok in zip(trials, same, strict=True) if not ok]
    assert all(code == 0 for *_, code in trials)
    assert any(died for died, *_ in trials)
    amid = [trial for trial in trials if trial[0] and "last.safetensors" in trial[1]]
    assert amid, "no kill came between the first checkpoint and the end"
    within = sum(bool(hidden) for died, _, hidden, _ in trials if died)
    if SOAK:
        assert within, "no kill came while a checkpoint was being written"
    print(f"{KILLS} kills, {len(amid)} after a checkpoint, {within} while one was written")


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("alone")
    train_here(out, **LONG)
    return contents(out)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_a_training_with_a_checkpoint_a_line_and_its_exit_code(alone, tmp_path, name):
    """And what is resumed ends as if there had been no signal."""
    number = signal.Signals[name]
    out = tmp_path / "stopped"
    process = start(str(TRAIN), *flags(out, **LONG))
    deadline = time.monotonic() + 60
    while not list(out.glob("tensorboard/events*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.3)
    os.kill(process.pid, number)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert output == ""
    line = errors.splitlines()[-1]
    assert line.startswith("interrupted at trajectory ")
    assert "--resume" in line
    assert "Traceback" not in errors
    kept = read_checkpoint(out / "last.safetensors").facts["trajectories"]
    assert line.split()[3].rstrip(",") == str(kept)
    assert 0 < kept < int(LONG["trajectories"])
    train_here(out, "--resume", **LONG)
    result = FILES[:2]  # the checkpoint before the last was another
    assert [contents(out)[name] for name in result] == [alone[name] for name in result]
