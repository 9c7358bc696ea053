"""Two processes that share a batch, for the tests of copies of a model."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch
import torch.multiprocessing as mp


def of_two_processes(work: Callable[[int, str], None], folder: Path) -> list:
    """What ``work(rank, folder)`` saved in ``folder/RANK.pt``, by rank.

    The processes are copies of one that has imported torch.
    """
    multiprocessing.set_forkserver_preload(["torch.distributed", "torch._dynamo", "metaopt"])
    mp.start_processes(work, args=(str(folder),), nprocs=2, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]
