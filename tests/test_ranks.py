"""Processes that share one job: the same shards, whoever has them, and one end where one fails."""

import re
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from training_cases import make, results

from metaopt import UserError
from metaopt.evaluation.evaluate import evaluate
from metaopt.evaluation.methods import resolve
from metaopt.learned.checkpoint import read_checkpoint, save_meta_optimizer
from metaopt.ranks import ALONE, Ranks
from metaopt.tasks import RegressionFamily
from metaopt.training import run as run_module
from metaopt.training.run import BEST, LAST, run_training
from metaopt.training.shards import split
from metaopt.training.trainer import Trainer

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

    def most(self, value):
        return max(int(v) for v in self.gather([torch.tensor([value])], [1] * self.size))

    def from_first(self, make):
        content = torch.tensor(list(make()) if self.first else [], dtype=torch.float64)
        shared = self.threads
        shared.sent[self.rank] = content
        shared.barrier.wait()
        data = bytes(shared.sent[0].byte().tolist())
        shared.barrier.wait()
        return data


@pytest.mark.parametrize(("items", "parts", "lengths"), [
    (5, 2, [3, 2]), (4, 4, [1] * 4), (3, 5, [1, 1, 1]), (7, 1, [7]), (8, 3, [3, 3, 2]),
])  # fmt: skip
def test_parts_are_in_order_and_as_even_as_can_be(items, parts, lengths):
    found = split(range(items), parts)
    assert [len(part) for part in found] == lengths
    assert [item for part in found for item in part] == list(range(items))


def shared(trainer: Trainer, ranks: Ranks) -> Trainer:
    """The same run, fresh, of one of several processes."""
    return Trainer(trainer.meta.spec, trainer.spec, ranks)


def trained(ranks: Ranks, **fields):
    options = {"batch_size": 5, "micro_batch": 1, "trajectories": 10, "widths": (6, 8, 12)}
    trainer = shared(make(**{**options, "validation_problems": 3, **fields}), ranks)
    numbers = []
    while not trainer.finished:
        numbers.append(trainer.train_batch() | trainer.validate())
    return trainer.state(), numbers


@pytest.mark.parametrize("estimator", ["truncated", "pes"])
def test_any_number_of_processes_trains_the_same_bits(estimator):
    """Widths differ, so that some batches have fewer problems than there are processes."""
    state, numbers = trained(ALONE, estimator=estimator)
    for size in (2, 5):
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
    for own in Threads(3).run(run):
        for one, other, all_at_once in zip(alone, own, whole, strict=True):
            for name in ("losses", "grad_norms", "invariance_errors", "rejected"):
                first, second = (getattr(r.trajectory, name) for r in (one, other))
                torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
            torch.testing.assert_close(
                one.trajectory.losses, all_at_once.trajectory.losses, rtol=0.05, atol=1e-9
            )


PARTS = {
    "batch_size": 5, "trajectories": 10, "widths": (16, 24), "validation_every": 5, "steps": 2,
    "window": 2, "validation_at": (1, 2),
}  # fmt: skip


def test_without_micro_batch_processes_differ_by_rounding_alone():
    """Each has a part of a batch, of 5 tasks or of other numbers, which 2 and 7 do not divide."""
    _, numbers = trained(ALONE, **PARTS, micro_batch=0)
    for size in (2, 7):
        for state, own in Threads(size).run(lambda r: trained(r, **PARTS, micro_batch=0)):
            for name in ("meta_loss", "gradient_norm", "final_loss", "score"):
                expected = pytest.approx([n[name] for n in numbers], rel=1e-3)
                assert [n[name] for n in own] == expected
            assert all(tensor.isfinite().all() for tensor in state.values())


def ran(
    size: int, out: Path, capsys, resume: bool = False, init_from: str = "", **fields
) -> list[str]:
    """Train in a folder, by threads; return the notes on parts and on what has nothing to do."""
    trainer = make({"element": "none"}, **{**PARTS, **fields})
    run = partial(run_training, out=out, resume=resume, overwrite=False, init_from=init_from)
    capsys.readouterr()
    Threads(size).run(lambda r: run(shared(trainer, r))) if size > 1 else run(trainer)
    said = capsys.readouterr().err.splitlines()
    return [line for line in said if re.match("parts of|a batch has|.* nothing to do", line)]


def test_a_given_micro_batch_leaves_the_same_bytes_with_any_number_of_processes(tmp_path, capsys):
    """Three parts, of which the last is smaller."""
    for size, notes in ((1, []), (2, []), (3, []), (5, ["2 of 5 processes have nothing to do"])):
        said = ran(size, tmp_path / str(size), capsys, micro_batch=2)
        assert len(said) == len(notes)
        assert all(line.startswith(note) for line, note in zip(said, notes, strict=True))
        assert results(tmp_path / str(size)) == results(tmp_path / "1")


def test_parts_are_recorded_in_the_run_and_stay_when_another_number_of_processes_resumes(
    monkeypatch, tmp_path, capsys
):
    (line,) = ran(3, tmp_path / "whole", capsys)
    assert line == (
        "parts of a batch: 3, one a process; other numbers of processes differ by rounding, "
        "with --micro_batch 1 they do not"
    )
    for name in (LAST, BEST):
        assert read_checkpoint(tmp_path / "whole" / name).facts["parts"] == 3
    whole = results(tmp_path / "whole")
    write = run_module._write
    for size, idle in ((1, []), (2, []), (5, ["2 of 5 processes have nothing to do"])):
        out = tmp_path / str(size)
        with monkeypatch.context() as patched:

            def stop(trainer, folder):
                write(trainer, folder)
                raise KeyboardInterrupt

            patched.setattr(run_module, "_write", stop)
            with pytest.raises((KeyboardInterrupt, threading.BrokenBarrierError)):
                ran(3, out, capsys)
        assert read_checkpoint(out / LAST).facts["trajectories"] == 5
        said = ran(size, out, capsys, resume=True)
        assert said[0].startswith("parts of a batch: 3, as at the start of the run; with ")
        assert [line.split(",")[0] for line in said[1:]] == idle
        assert results(out) == whole


def test_a_run_of_one_process_says_nothing_of_parts_and_records_none(tmp_path, capsys):
    assert ran(1, tmp_path, capsys) == []
    assert "parts" not in read_checkpoint(tmp_path / LAST).facts
    (stays, idle) = ran(2, tmp_path, capsys, resume=True, trajectories=15)
    assert stays.startswith("parts of a batch: 1, as at the start of the run; with 2 processes")
    assert idle.startswith("1 of 2 processes have nothing to do")


def test_more_processes_than_a_batch_has_tasks_are_told_that_they_wait(tmp_path, capsys):
    assert len(ran(5, tmp_path / "five", capsys)) == 1
    (_, line) = ran(6, tmp_path / "six", capsys)
    assert line.startswith("a batch has 5 tasks of width 20")


def test_processes_begin_with_a_checkpoint_and_make_a_run_longer_together(tmp_path, capsys):
    """The validation at the end of the first run, at 10, is taken back by both."""
    source = tmp_path / "source.safetensors"
    save_meta_optimizer(source, make({"element": "none"}, seed=5).meta, {})
    fields = {"micro_batch": 2, "schedule": "constant", "validation_every": 15}
    run = partial(ran, capsys=capsys, init_from=str(source), **fields)
    run(1, tmp_path / "whole", trajectories=20)
    for second in (1, 2):
        out = tmp_path / str(second)
        run(2, out, trajectories=10)
        run(second, out, resume=True, trajectories=20)
        assert results(out) == results(tmp_path / "whole")
    assert read_checkpoint(tmp_path / "whole" / LAST).facts["init_from"]["source"] == str(source)


def test_an_estimator_that_draws_says_that_parts_draw_their_own(tmp_path, capsys):
    (line,) = ran(2, tmp_path, capsys, estimator="pes")
    assert "other numbers of processes differ as with another seed" in line


def test_more_processes_than_batches_of_an_evaluation_are_refused_with_what_to_do():
    with pytest.raises(UserError, match=r"add --together 1"):
        next(evaluate([resolve("gd")], RegressionFamily.square(3), [1, 2], 1, ranks=Ranks(0, 2)))
