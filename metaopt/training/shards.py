"""A batch of tasks in parts, called shards, that give one meta-gradient together.

The shards are part of a run: they depend on its config, and without ``micro_batch`` on the number
of processes that it began with. Each is unrolled by itself, by whichever process has it. Their
meta-gradients are added in a fixed order in float64. So the same shards give the same bits, however
many processes share them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from metaopt.learned.meta_optimizer import MetaOptimizer
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.ranks import Ranks
from metaopt.training.distributions import Drawn
from metaopt.training.guards import sampled, windows
from metaopt.training.spec import TrainingSpec
from metaopt.training.unroll import Window

Item = TypeVar("Item")
SETTLED = 1e-3  # of the log floor: below it the meta-gradient is 0 but for a thousandth


def split(items: Sequence[Item], parts: int) -> list[Sequence[Item]]:
    """Split a sequence, in order, into parts whose lengths differ by at most 1.

    Args:
        items: what to split.
        parts: how many parts; at most one for each item.

    Example:
        >>> split([1, 2, 3, 4, 5], 2)
        [[1, 2, 3], [4, 5]]
    """
    parts = min(parts, len(items))
    small, longer = divmod(len(items), parts)
    ends = [(k + 1) * small + min(k + 1, longer) for k in range(parts)]
    return [items[start:end] for start, end in zip([0, *ends], ends, strict=False)]


class Reduced(NamedTuple):
    """One window of the whole batch; it is the same in every process.

    Attributes:
        meta_loss: mean over tasks.
        gradients: the gradients of the meta-loss, one for each trained meta-parameter.
        mean_log: mean over tasks of log(loss) at the end of the window.
        settled: whether all losses are far below the floor of the meta-loss.
        rejected: teleportations that were rejected so far in the trajectory, over all tasks.
        lowest: the lowest loss in the window.
    """

    meta_loss: float
    gradients: list[Tensor]
    mean_log: float
    settled: bool
    rejected: int
    lowest: float


def reduced_windows(
    drawn: Drawn,
    parts: int,
    spec: TrainingSpec,
    meta: MetaOptimizer,
    ranks: Ranks,
    trajectory: int,
    told: bool = True,
) -> Iterator[Reduced]:
    """Unroll the shards of this process window by window, and combine all shards.

    The parameters of ``meta`` may be changed in place between windows.

    Args:
        drawn: the batch of tasks.
        parts: the number of shards, if there are as many tasks.
        spec: how to train.
        meta: the networks m1 and m2.
        ranks: the processes that share the shards.
        trajectory: number of the first trajectory of the batch. With the seed of ``spec`` it seeds
            what an estimator draws.
        told: whether the rule is told how long the trajectory is.

    Raises:
        UserError: if another process ends or is too slow, or if a component of a user's makes a
            mistake.
    """
    shards = split(drawn.seeds, parts)
    device = next(meta.parameters()).device
    own: list[Iterator[Window]] = []
    for k in ranks.own(len(shards)):
        tasks = sampled(drawn.family, shards[k], spec.problems).to(device)
        tasks.total_steps = spec.steps if told else 0
        optimizer = LearnedOptimizer(tasks, meta)
        generator = _generator(spec.seed, trajectory, k)
        own.append(windows(spec, tasks, optimizer, generator))
    like = [p for p in meta.parameters() if p.requires_grad]
    length = sum(p.numel() for p in like) + len(_FACTS)
    weights = [len(shard) / len(drawn.seeds) for shard in shards]
    for _ in range(0, spec.steps, spec.window):
        packed = [_pack(next(run), spec.log_floor) for run in own]
        gathered = ranks.gather(packed, [length] * len(shards))
        yield _reduce(gathered, weights, like)


_FACTS = ("meta_loss", "mean_log", "unsettled", "rejected", "lowest")


def _pack(window: Window, floor: float) -> Tensor:
    """Return a window as one vector: the numbers that ``_FACTS`` names, then the gradients."""
    last = window.losses[-1].double()
    facts = torch.stack(
        (
            window.meta_loss.double(),
            last.log().mean(),
            (~(last < SETTLED * floor)).any().double(),
            window.rejected.to(last),
            window.losses.nan_to_num(nan=math.inf).min().double(),
        )
    )
    return torch.cat((facts, *(g.detach().double().flatten() for g in window.gradients)))


def _reduce(
    gathered: Sequence[Tensor], weights: Sequence[float], like: Sequence[Tensor]
) -> Reduced:
    total = gathered[0] * weights[0]
    for vector, weight in zip(gathered[1:], weights[1:], strict=True):
        total = total + weight * vector
    facts = torch.stack([vector[: len(_FACTS)] for vector in gathered]).cpu()
    parts = torch.split(total[len(_FACTS) :], [p.numel() for p in like])
    meta_loss, mean_log = total[:2].tolist()
    return Reduced(
        meta_loss,
        [part.view(p.shape).to(p.dtype) for part, p in zip(parts, like, strict=True)],
        mean_log,
        not bool(facts[:, 2].any()),
        int(facts[:, 3].sum()),
        facts[:, 4].min().item(),
    )


def _generator(seed: int, trajectory: int, shard: int) -> torch.Generator:
    """Return the generator of a shard's random choices, the same in whichever process has it."""
    digest = hashlib.sha256(f"{seed}/{trajectory}/{shard}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
