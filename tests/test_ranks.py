"""Processes that share one job: the same shards, whoever has them, and one end where one fails."""

import threading

import pytest
import torch
from training_cases import make

from metaopt import UserError
from metaopt.evaluation.evaluate import evaluate
from metaopt.evaluation.methods import resolve
from metaopt.ranks import ALONE, Ranks
from metaopt.tasks import RegressionFamily
from metaopt.training.shards import split

soak = pytest.mark.soak


class Threads:
    """Ranks that are threads of this process, and hand over what they send."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.sent: list[torch.Tensor | None] = [None] * size
        self.barrier = threading.Barrier(size, timeout=60)

    def run(self, work) -> list:
        results: list = [None] * self.size
        threads = [
            threading.Thread(target=self._one, args=(work, results, rank))
            for rank in range(self.size)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results

    def _one(self, work, results: list, rank: int) -> None:
        try:
            results[rank] = work(_Thread(rank, self.size, threads=self))
        except BaseException as error:
            self.barrier.abort()
            results[rank] = error


class _Thread(Ranks):
    def __init__(self, rank: int, size: int, threads: Threads) -> None:
        super().__init__(rank, size)
        object.__setattr__(self, "threads", threads)

    def gather(self, own, lengths):
        shared = self.threads
        shared.sent[self.rank] = [vector.clone() for vector in own]
        shared.barrier.wait()
        found = [shared.sent[k % self.size][k // self.size] for k in range(len(lengths))]
        shared.barrier.wait()
        assert [vector.numel() for vector in found] == list(lengths)
        return found


@pytest.mark.parametrize(("items", "parts", "lengths"), [
    (5, 2, [3, 2]), (4, 4, [1] * 4), (3, 5, [1, 1, 1]), (7, 1, [7]), (8, 3, [3, 3, 2]),
])  # fmt: skip
def test_parts_are_in_order_and_as_even_as_can_be(items, parts, lengths):
    found = split(range(items), parts)
    assert [len(part) for part in found] == lengths
    assert [item for part in found for item in part] == list(range(items))


def trained(ranks: Ranks, **fields):
    options = {"batch_size": 5, "micro_batch": 1, "trajectories": 10, "widths": (6, 8, 12)}
    trainer = make(**{**options, "validation_problems": 3, **fields})
    trainer.ranks = ranks
    numbers = []
    while not trainer.finished:
        numbers.append(trainer.train_batch() | trainer.validate())
    return trainer.state(), numbers


@pytest.mark.parametrize("estimator", ["truncated", "pes"])
def test_any_number_of_processes_trains_the_same_bits(estimator):
    """Widths differ, so that some batches have fewer problems than there are processes."""
    state, numbers = trained(ALONE, estimator=estimator)
    for size in (2, 3, 5):
        for other, own in Threads(size).run(lambda r: trained(r, estimator=estimator)):
            assert own == numbers
            assert state.keys() == other.keys()
            assert all(torch.equal(state[name], other[name]) for name in state)


def test_shards_give_the_meta_gradient_of_the_whole_batch():
    """The first window's: the same mean over problems, but for the order of its additions."""
    gradients = {}
    for micro in (0, 1, 2, 3):
        trainer = make(batch_size=5, micro_batch=micro, dtype="float64", steps=3, clip=0.0)
        trainer.train_batch()
        gradients[micro] = torch.cat([p.grad.flatten() for p in trainer.meta.parameters()])
    assert gradients[0].norm() > 0
    for micro in (1, 2, 3):
        torch.testing.assert_close(gradients[micro], gradients[0], rtol=1e-3, atol=1e-6)


def test_evaluation_in_batches_is_the_same_for_any_number_of_processes():
    family, seeds = RegressionFamily(4, 5, 3, 2), [3, 1, 4, 15, 9]
    methods = [resolve(name) for name in ("gd_tele", "lstm_update_tele", "lbfgs")]

    def run(ranks: Ranks):
        return list(evaluate(methods, family, seeds, 7, together=2, ranks=ranks))

    alone = run(ALONE)
    whole = list(evaluate(methods, family, seeds, 7))
    for results in Threads(3).run(run):
        for one, other, all_at_once in zip(alone, results, whole, strict=True):
            for name in ("losses", "grad_norms", "invariance_errors", "rejected"):
                first, second = (getattr(r.trajectory, name) for r in (one, other))
                torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
            torch.testing.assert_close(
                one.trajectory.losses, all_at_once.trajectory.losses, rtol=0.05, atol=1e-9
            )


def test_more_processes_than_parts_are_refused_with_what_to_do():
    trainer = make(batch_size=4, micro_batch=2)
    with pytest.raises(UserError, match=r"3 parts or more for 3 processes.*lower micro_batch"):
        type(trainer)(trainer.meta.spec, trainer.spec, Ranks(0, 3))
    with pytest.raises(UserError, match=r"add --together 1"):
        next(evaluate([resolve("gd")], RegressionFamily.square(3), [1, 2], 1, ranks=Ranks(0, 2)))
