"""Real processes, started by torchrun: the bytes of one, and one end where one of them fails."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from soak_cases import (
    ENVIRONMENT,
    EVAL,
    FILES,
    LONG,
    SOAK,
    TRAIN,
    contents,
    flags,
    form,
    start,
    train_here,
)

from metaopt.cli import evaluate

soak = pytest.mark.soak
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def torchrun(processes: int, *command: str, restarts: int = 0) -> subprocess.Popen[str]:
    launch = ("-m", "torch.distributed.run", "--nproc-per-node", str(processes))
    where = ("--master-port", free_port(), "--max-restarts", str(restarts))
    return start(*launch, *where, *command)


def workers(launcher: int) -> list[int]:
    """The processes that torchrun started, by rank."""
    found = {}
    for child in psutil.Process(launcher).children():
        try:
            if "RANK" in child.environ() and any("_meta.py" in part for part in child.cmdline()):
                found[int(child.environ()["RANK"])] = child.pid
        except psutil.Error:
            continue
    return [found[rank] for rank in sorted(found)]


def wait_for(happened, process: subprocess.Popen[str], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("alone")
    train_here(out)
    return contents(out)


@soak
def test_a_process_that_dies_is_started_again_with_all_others_and_the_end_is_the_same(
    alone, tmp_path
):
    """Two processes give the bytes of one, though the second is killed on the way."""
    process = torchrun(2, str(TRAIN), *flags(tmp_path), restarts=2)
    wait_for((tmp_path / FILES[0]).exists, process)
    os.kill(workers(process.pid)[1], signal.SIGKILL)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "best validation score" in output
    assert contents(tmp_path) == alone


@soak
@pytest.mark.skipif(not SOAK, reason="the long form, by `make soak`")
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_give_the_bytes_of_one(alone, tmp_path, processes):
    process = torchrun(processes, str(TRAIN), *flags(tmp_path))
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 0, errors
    assert contents(tmp_path) == alone
    out = tmp_path / "eval"
    command = ["--methods", "gd,lstm_update_tele", "--problems", "8", "--steps", "9"]
    command += ["--together", "2", "--out"]
    for process in (
        torchrun(processes, str(EVAL), *command, str(out)),
        start(str(EVAL), *command, str(tmp_path / "one")),
    ):
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == 0, errors
    name = "results.jsonl"
    assert (out / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


@soak
@pytest.mark.skipif(not SOAK, reason="the long form, by `make soak`")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_or_slow_process_ends_the_run_in_a_line_within_a_minute(alone, tmp_path, number):
    process = torchrun(2, str(TRAIN), *flags(tmp_path, trajectories="4800"), "--timeout", "10")
    wait_for((tmp_path / FILES[0]).exists, process)
    struck = workers(process.pid)[1]
    begun = time.monotonic()
    os.kill(struck, number)
    survivor = workers(process.pid)[0]
    wait_for(lambda: not Path(f"/proc/{survivor}").exists(), process, 60)
    assert time.monotonic() - begun < 60
    if number == signal.SIGSTOP:
        os.kill(struck, signal.SIGKILL)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode != 0
    if number == signal.SIGSTOP:  # of a dead one torchrun itself says so, and ends the others
        assert "error: expected all 2 processes to go on" in errors
    assert (tmp_path / FILES[0]).stat().st_size == len(alone[FILES[0]])
    resumed = torchrun(2, str(TRAIN), *flags(tmp_path, trajectories="4800"), "--resume")
    wait_for(lambda: len(workers(resumed.pid)) == 2, resumed)
    resumed.send_signal(signal.SIGTERM)
    resumed.communicate(timeout=60)


@soak
@pytest.mark.skipif(not SOAK, reason="the long form, by `make soak`")
def test_processes_on_two_hosts_give_the_bytes_of_one(alone, tmp_path):
    """Two network namespaces, joined by a pair of virtual cards."""
    names = [f"metaopt{os.getpid()}{side}" for side in "ab"]
    setup = [
        *(f"ip netns add {name}" for name in names),
        f"ip link add {names[0][-8:]} type veth peer name {names[1][-8:]}",
        *(f"ip link set {name[-8:]} netns {name}" for name in names),
        *(f"ip -n {n} addr add 10.77.0.{k + 1}/24 dev {n[-8:]}" for k, n in enumerate(names)),
        *(f"ip -n {n} link set {d} up" for n in names for d in (n[-8:], "lo")),
    ]
    try:
        for command in setup:
            try:
                done = subprocess.run(command.split(), capture_output=True, check=False, text=True)
            except FileNotFoundError:
                pytest.skip("needs the command ip")
            if done.returncode:
                pytest.skip(f"needs network namespaces: {done.stderr.strip()}")
        launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
        launch += ["--nproc-per-node", "1", "--master-addr", "10.77.0.1", "--master-port", "29500"]
        processes = []
        for k, name in enumerate(names):
            own = [*launch, "--node-rank", str(k), str(TRAIN), *flags(tmp_path / str(k))]
            environment = ENVIRONMENT | {"GLOO_SOCKET_IFNAME": name[-8:]}
            inside = ["ip", "netns", "exec", name, *own]  # each host has a folder of its own
            processes.append(subprocess.Popen(inside, env=environment, **PIPES))
        errors = [process.communicate(timeout=180)[1] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], errors
        assert contents(tmp_path / "0") == alone
        assert not (tmp_path / "1").exists()
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@soak
def test_a_signal_to_one_process_ends_all_with_one_line_and_a_checkpoint(tmp_path):
    """Then resumed, by one process, to the bytes of one that was left alone."""
    out = tmp_path / "two"
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    both = [
        start(str(TRAIN), *flags(out, **LONG), env=ENVIRONMENT | environment | {"RANK": rank})
        for rank in "01"
    ]
    wait_for(lambda: list(out.glob("tensorboard/events*")), both[0])
    time.sleep(0.3)
    both[1].send_signal(signal.SIGTERM)
    errors = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [143, 143], errors
    assert [text.count("interrupted at trajectory") for text in errors] == [1, 0]
    assert (out / FILES[0]).exists()
    train_here(out, "--resume", **LONG)
    train_here(tmp_path / "one", **LONG)
    for name in FILES[:2]:
        assert (out / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


@soak
def test_a_refused_command_is_refused_after_a_restart_too_and_in_one_line(tmp_path):
    out = tmp_path / "out"
    small = ["--problems", "2", "--steps", "2", "--together", "1", "--out", str(out)]
    evaluate.main(["--methods", "gd", *small])
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    process = torchrun(2, str(EVAL), "--methods", "adam", *small, restarts=1)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode != 0
    complaints = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(complaints) == 2  # the first try and the restart, by the first process each
    assert all("add --overwrite" in line for line in complaints)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


@soak
def test_processes_with_other_flags_are_told_so(tmp_path):
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    both = [
        start(
            str(TRAIN),
            *flags(tmp_path / "out", seed=rank),
            env=ENVIRONMENT | environment | {"RANK": rank},
        )
        for rank in "01"
    ]
    for process in both:
        errors = process.communicate(timeout=60)[1]
        assert process.returncode == 2
        assert "expected the same config and torch in all 2 processes" in errors
    assert not (tmp_path / "out").exists()


def test_a_rank_waits_no_longer_than_it_is_told(capsys):
    """Alone where two are expected: one line, after the time given."""
    environment = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": free_port(), "LOCAL_RANK": "0"}
    seconds = form("2", "5")
    process = start(
        str(TRAIN), "--timeout", seconds, "--out", "never", env=ENVIRONMENT | environment
    )
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 2
    assert errors.splitlines()[-1].startswith("error: expected to find 2 processes")
    assert not Path("never").exists()
