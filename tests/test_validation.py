"""Validation: on which problems, what the score is, which networks are kept or given up."""

import math

import pytest
import torch
from training_cases import assert_same, copies, make

from metaopt import LearnedOptimizer
from metaopt.evaluation.rollout import Trajectory, rollout
from metaopt.tasks import RegressionFamily
from metaopt.tasks.seeds import VALIDATION
from metaopt.training import trainer as trainer_module


@pytest.fixture
def sampled(monkeypatch):
    """(width, seeds) of every batch of problems drawn."""
    drawn = []
    original = RegressionFamily.sample

    def sample(self, seeds):
        seeds = list(seeds)
        drawn.append((self.hidden, seeds))
        return original(self, seeds)

    monkeypatch.setattr(RegressionFamily, "sample", sample)
    return drawn


def test_validation_takes_the_first_validation_seeds_at_the_reference_width(sampled):
    make(validation_problems=3).validate()
    assert sampled == [(20, [VALIDATION.start + i for i in range(3)])]


def test_other_families_are_validated_on_a_quarter_as_many_and_count_as_much(monkeypatch):
    drawn = []

    def run(problem, optimizer, steps, **_):
        drawn.append((problem.chain, problem.x.shape))
        level = {20: 1e-4, 8: 1e-2}[problem.x.shape[1]] * len(problem.chain.pairs)
        losses = torch.full((steps + 1, problem.batch), level, dtype=torch.float64)
        return Trajectory(losses, losses, losses, losses.bool(), 0.0)

    monkeypatch.setattr(trainer_module, "rollout", run)
    fields = {"validation_problems": 8, "validation_families": ("width_8", "three_layers")}
    score = make(**fields).validate()["score"]
    assert [tuple(shape) for _, shape in drawn] == [(8, 20, 20), (2, 8, 8), (2, 20, 20)]
    assert [len(chain.pairs) for chain, _ in drawn] == [1, 1, 2]
    assert score == pytest.approx((-4 - 2 - 4 + math.log10(2)) / 3)


def test_validation_score_is_the_mean_log10_loss_and_the_best_networks_are_kept(monkeypatch):
    """Losses at steps 2 and 4 count; a lost problem counts as 1e38."""
    runs = []
    for level in (1e-3, 1e-7, math.nan, 1e-5):
        losses = torch.full((5, 2), 1e30, dtype=torch.float64)
        losses[2], losses[4] = torch.tensor([1e-1, 1e-2]), torch.tensor([level, 1e-3])
        runs.append(Trajectory(losses, losses, losses, losses.bool(), 0.0))
    remaining = iter(runs)
    monkeypatch.setattr(trainer_module, "rollout", lambda *a, **k: next(remaining))
    trainer, seen, scores = make(), [], []
    for _ in runs:
        with torch.no_grad():
            trainer.averaged.update.lstm.head_bias.add_(1.0)
        seen.append(copies(trainer.averaged))
        scores.append(trainer.validate()["score"])
    assert scores == pytest.approx([-(1.5 + n) / 2 for n in (3.0, 5.0, -17.5, 4.0)])
    assert trainer.best_score == scores[1]
    assert_same(trainer.best, seen[1])


def test_much_worse_networks_are_given_up_for_the_best_and_training_goes_on_at_half_rate(
    monkeypatch,
):
    trainer, scores = make(rollback=0.5, learning_rate_update=1e-3, schedule="constant"), []
    monkeypatch.setattr(trainer_module, "rollout", lambda *a, **k: scores.pop(0))

    def scored(score):
        losses = torch.full((5, 2), 10.0**score, dtype=torch.float64)
        scores.append(Trajectory(losses, losses, losses, losses.bool(), 0.0))
        trainer.train_batch()
        trainer.validate()
        return copies(trainer.averaged), {k: v.clone() for k, v in trainer.state().items()}

    best = scored(-3.0)
    a_little_worse = scored(-2.6)
    assert trainer.rollbacks == 0
    assert any(not torch.equal(v, best[1][k]) for k, v in a_little_worse[1].items())
    lost = scored(-2.4)
    for then, now in zip(best, lost, strict=True):
        assert_same(now, then)
    assert trainer.rollbacks == 1
    assert trainer.train_batch()["learning_rate"] == 0.5e-3


def test_validation_reports_what_a_rollout_of_the_same_problems_gives():
    trainer = make()
    numbers = trainer.validate()
    problem = RegressionFamily.square(20).sample([VALIDATION.start, VALIDATION.start + 1])
    losses = rollout(problem, LearnedOptimizer(problem, trainer.meta), 4).losses
    for step in (2, 4):
        expected = losses[step].log10().mean().item()
        assert numbers[f"log10_loss_at_{step}"] == pytest.approx(expected, abs=1e-5)
