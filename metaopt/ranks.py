"""Processes that share one job: which shards are whose, and what all of them learn of each.

Shards do not depend on the number of processes, and what is gathered comes in the order of the
shards: a sum over it is the same whoever computed its terms.
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
"""Seconds that processes wait for the slowest of them."""


@dataclass(frozen=True)
class Ranks:
    """This process among all of a job; alone by default.

    Attributes:
        rank: of this process, from 0.
        size: how many there are.
        device: of what is sent.
        timeout: seconds to wait for others.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    timeout: float = TIMEOUT

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and shows progress."""
        return self.rank == 0

    def own(self, shards: int) -> range:
        """The shards, of so many, that this process computes."""
        return range(self.rank, shards, self.size)

    def gather(self, own: Sequence[Tensor], lengths: Sequence[int]) -> list[Tensor]:
        """The vectors of all shards, in their order, from those of the own ones, in their order.

        Args:
            own: float64, of the shards of :meth:`own`.
            lengths: of the vector of each shard.

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
        """The largest value that any process gives."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], device=self.device)
        self._together(lambda: dist.all_reduce(shared, dist.ReduceOp.MAX))
        return int(shared)

    def check_same(self, text: str, what: str) -> None:
        """All processes must have been given the same.

        Raises:
            UserError: in all of them, if they have not.
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
        """What the first process makes, in all of them.

        Where ``make`` raises, its error is raised in the first process, and SystemExit in the
        others: one line says what was wrong.
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
