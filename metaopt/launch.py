"""Connect the processes that torchrun starts, and tell whether one of them was restarted."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from metaopt.errors import UserError
from metaopt.ranks import ALONE, TIMEOUT, Ranks

LAUNCH = ".launch"
_PARENT = os.getppid()


@contextmanager
def joined(device: torch.device, timeout: float = TIMEOUT) -> Iterator[Ranks]:
    """Connect this process to the others that torchrun started, for the length of a ``with`` block.

    A process that no launcher started is alone. Any launcher works that sets RANK, WORLD_SIZE,
    MASTER_ADDR and MASTER_PORT. The backend is gloo for tensors on the CPU, and nccl for GPUs.

    Args:
        device: where the tensors that are exchanged live.
        timeout: seconds to wait for the slowest process.

    Yields:
        The place of this process among all of them.

    Raises:
        UserError: if the timeout is not a positive number, or the processes do not find each other.
    """
    if not 0 < timeout < float("inf"):
        raise UserError(f"expected a --timeout of more than 0 seconds, got {timeout}: 45 is usual")
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield ALONE
        return
    try:
        _start("nccl" if device.type == "cuda" else "gloo", timedelta(seconds=timeout))
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"expected to find {os.environ['WORLD_SIZE']} processes, got none of that many "
            f"({reason}): start all by torchrun, with the same address"
        ) from None
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), device, timeout)
    finally:
        dist.destroy_process_group()


def note_start(folder: Path) -> None:
    """Record in a folder that this launch of torchrun writes it; :func:`restarted` reads that."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        (folder / LAUNCH).write_text(_launch())


def restarted(folder: Path) -> bool:
    """Return whether torchrun has restarted this process after it began to write a folder.

    False after a start that was rejected before it wrote: the command is then taken as it stands.
    """
    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    mark = folder / LAUNCH
    return again and mark.is_file() and mark.read_text() == _launch()


def launcher_ended() -> bool:
    """Return whether torchrun, which started this process, has ended before it.

    It does so where it is killed, or gets a signal that it passes on to nobody, such as SIGUSR1.
    """
    return "TORCHELASTIC_RUN_ID" in os.environ and os.getppid() != _PARENT


def _launch() -> str:
    """Return a name of the launcher, which is the same after a restart."""
    return f"{socket.gethostname()} {os.getppid()} {os.environ.get('TORCHELASTIC_RUN_ID')}"


def _start(backend: str, timeout: timedelta) -> None:
    """Connect the processes by the store that the environment variables name."""
    from torch.distributed.rendezvous import rendezvous

    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # a late peer is an error, not an abort
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    name = _agreed_name(store, rank, size, time.monotonic() + timeout.total_seconds())
    own = dist.PrefixStore(name, store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=timeout)


def _agreed_name(store: Any, rank: int, size: int, deadline: float) -> str:
    """Return a prefix for the store that only the processes of this start share.

    torchrun keeps its store over restarts, with the addresses of processes that died. So each
    process writes a random word of its own. The first process answers under each word with a
    prefix that it has just made, until all others have confirmed it. Words that dead processes
    left are answered too, but nobody reads these answers.
    """
    own = uuid.uuid4().hex
    others = range(1, size)
    if rank == 0:
        while not all(store.check([f"metaopt/{own}/{k}"]) for k in others):
            for k in others:
                if store.check([f"metaopt/hello/{k}"]):
                    word = store.get(f"metaopt/hello/{k}").decode()
                    store.set(f"metaopt/welcome/{word}", own)
            _wait(deadline)
        return f"metaopt/{own}"
    store.set(f"metaopt/hello/{rank}", own)
    while not store.check([f"metaopt/welcome/{own}"]):
        _wait(deadline)
    name = f"metaopt/{store.get(f'metaopt/welcome/{own}').decode()}"
    store.set(f"{name}/{rank}", "here")
    return name


def _wait(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise RuntimeError("not all of them said hello in time")
    time.sleep(0.02)
