"""How the processes of a launcher find each other, and what a restarted one may go on with."""

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


@contextmanager
def joined(device: torch.device, timeout: float = TIMEOUT) -> Iterator[Ranks]:
    """This process among those that torchrun started, or alone.

    Any launcher that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT will do. CPU tensors go
    by gloo, those of GPUs by nccl.

    Raises:
        UserError: for a timeout that is none, or if the processes do not find each other.
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
    """Write into a folder that this launch of torchrun may go on with what is in it."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        (folder / LAUNCH).write_text(_launch())


def restarted(folder: Path) -> bool:
    """Whether torchrun has started this process again after it began with that folder.

    Not after a start that was refused: then the command means what it says.
    """
    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    mark = folder / LAUNCH
    return again and mark.is_file() and mark.read_text() == _launch()


def _launch() -> str:
    """The launcher, which stays over restarts."""
    return f"{socket.gethostname()} {os.getppid()} {os.environ.get('TORCHELASTIC_RUN_ID')}"


def _start(backend: str, timeout: timedelta) -> None:
    """Join the processes by the store that their environment names."""
    from torch.distributed.rendezvous import rendezvous

    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # a late peer is an error, not an abort
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    name = _agreed_name(store, rank, size, time.monotonic() + timeout.total_seconds())
    own = dist.PrefixStore(name, store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=timeout)


def _agreed_name(store: Any, rank: int, size: int, deadline: float) -> str:
    """A name that only these processes know, in a store that may outlive others before them.

    torchrun keeps a store over restarts, with the addresses of those that died. Each process says
    hello with a word of its own; the first answers under that word with a name that it has just
    made, until all have joined under it. What was left by others is answered and never read.
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
