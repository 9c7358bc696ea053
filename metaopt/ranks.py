"""Share a job between processes: which part each one computes, and how results are exchanged.

A job is cut into shards, and results are gathered in the order of the shards. So a sum over the
same shards is the same, bit for bit, however many processes computed its terms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from metaopt.errors import UserError

CPU = torch.device("cpu")
TIMEOUT = 45.0
"""Seconds that a process waits for the slowest one, by default."""


@dataclass(frozen=True)
class Ranks:
    """The place of this process among all processes of a job; by default it is the only one.

    Attributes:
        rank: the number of this process, from 0.
        size: the number of processes.
        device: the device of the tensors that are exchanged.
        timeout: seconds to wait for the other processes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    timeout: float = TIMEOUT

    @property
    def first(self) -> bool:
        """Whether this process is number 0, which writes the files and shows the progress."""
        return self.rank == 0

    def own(self, shards: int) -> range:
        """Return which of the shards 0 ... ``shards`` - 1 this process computes."""
        return range(self.rank, shards, self.size)

    def gather(self, own: Sequence[Tensor], lengths: Sequence[int]) -> list[Tensor]:
        """Return the results of all shards, in every process and in the order of the shards.

        Args:
            own: the results of this process: a float64 vector for each shard of :meth:`own`, in
                that order.
            lengths: the length of the vector of each shard of the job.

        Returns:
            One float64 vector a shard.

        Raises:
            UserError: if another process has ended or is too slow.
        """
        if self.size == 1:
            return list(own)
        rounds, longest = -(-len(lengths) // self.size), max(lengths)
        sent = torch.zeros(rounds, longest, dtype=torch.float64, device=self.device)
        for row, vector in zip(sent, own, strict=False):
            row[: vector.numel()] = vector
        received = [torch.empty_like(sent) for _ in range(self.size)]
        self._together(lambda: dist.all_gather(received, sent))
        where = [divmod(k, self.size) for k in range(len(lengths))]
        return [received[rank][row, :n] for (row, rank), n in zip(where, lengths, strict=True)]

    def most(self, value: int) -> int:
        """Return the largest of the values that the processes give."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], device=self.device)
        self._together(lambda: dist.all_reduce(shared, dist.ReduceOp.MAX))
        return int(shared)

    def check_same(self, text: str, what: str) -> None:
        """Check that all processes were given the same text, such as the same settings.

        Args:
            text: what must be the same.
            what: what the text describes, for the message.

        Raises:
            UserError: in every process, if the texts differ.
        """
        digest = int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)
        own = torch.tensor([digest], dtype=torch.float64, device=self.device)
        found = [float(other) for other in self.gather([own], [1] * self.size)]
        if len(set(found)) > 1:
            raise UserError(
                f"expected the same {what} in all {self.size} processes, got another in number "
                f"{next(k for k, other in enumerate(found) if other != found[0])} than in number "
                f"0: start all with the same command and versions"
            )

    def from_first(self, make: Callable[[], bytes]) -> bytes:
        """Call ``make`` in the first process, and return what it made in every process.

        Raises:
            UserError, OSError: in the first process, if ``make`` raises it.
            SystemExit: in the others, if ``make`` raises: the first has said what was wrong.
        """
        if self.size == 1:
            return make()
        data, error = b"", None
        if self.first:
            try:
                data = make()
            except (UserError, OSError) as problem:
                error = problem
        length = torch.tensor([-1 if error else len(data)], device=self.device)
        self._together(lambda: dist.broadcast(length, 0))
        if error is not None:
            raise error
        if length < 0:
            raise SystemExit(2)
        if not length:
            return b""
        content = torch.frombuffer(bytearray(data or bytes(int(length))), dtype=torch.uint8)
        shared = content.to(self.device)
        self._together(lambda: dist.broadcast(shared, 0))
        return shared.cpu().numpy().tobytes()

    def _together(self, act: Callable[[], object]) -> None:
        try:
            act()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(
                f"expected all {self.size} processes to go on, got the end of one, or no word from "
                f"it in {self.timeout:g} s (process {self.rank} was told: {reason}): see what that "
                f"one says, and start all of them again"
            ) from None


ALONE = Ranks()
"""The only process of a job."""
