"""Meta-training with persistent evolution strategies."""

import pytest
from same_cases import assert_same
from torch import nn
from training_cases import copies

from metaopt.learned.checkpoint import read_checkpoint
from metaopt.learned.meta_optimizer import MetaOptimizerSpec
from metaopt.training.run import LAST, run_training
from metaopt.training.spec import TrainingSpec
from metaopt.training.trainer import Trainer


def make_trainer(**fields) -> Trainer:
    spec = {
        "estimator": "pes", "pes_pairs": 2, "trajectories": 4, "batch_size": 1, "steps": 4,
        "window": 2, "widths": (6, 8), "validation_problems": 2, "validation_at": (2, 4),
        "validation_every": 2, "validation_families": (), **fields,
    }  # fmt: skip
    return Trainer(MetaOptimizerSpec(hidden=4), TrainingSpec(**spec))


def trained(out, **fields) -> dict[str, bytes]:
    """The checkpoints of a run, resumed if there is one."""
    run_training(make_trainer(**fields), out, resume=True, overwrite=False)
    return {path.name: path.read_bytes() for path in out.glob("*.safetensors")}


def test_a_run_is_repeatable_and_resumes_to_the_same_bytes(monkeypatch, tmp_path):
    alone = trained(tmp_path / "alone")
    assert len(alone) == 3
    assert trained(tmp_path / "again") == alone
    assert trained(tmp_path / "other", seed=1) != alone

    with monkeypatch.context() as patched:
        real, calls = Trainer.train_batch, []

        def train_batch(self):
            numbers = real(self)
            calls.append(self)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return numbers

        patched.setattr(Trainer, "train_batch", train_batch)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "killed")
    assert read_checkpoint(tmp_path / "killed" / LAST).facts["trajectories"] == 2
    assert trained(tmp_path / "killed") == alone


def test_losses_that_are_not_finite_are_skipped_and_counted():
    trainer = make_trainer()
    nn.init.constant_(trainer.meta.update.lstm.head_bias, 1e38)
    before = copies(trainer.meta)
    numbers = trainer.train_batch()
    assert numbers["skipped"] == trainer.skipped == 1
    assert trainer.meta_steps == 0
    assert_same(trainer.meta.state_dict(), before)


def test_a_little_training_lowers_the_loss_of_the_validation_problems():
    trainer = make_trainer(
        trajectories=10, widths=(6,), steps=6, window=3, average=0.0, learning_rate_update=2e-2,
        learning_rate_element=2e-2,
    )  # fmt: skip
    before = trainer.validate()["score"]
    while not trainer.finished:
        trainer.train_batch()
    assert trainer.skipped == 0
    assert trainer.validate()["score"] < before - 0.1
