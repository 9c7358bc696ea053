"""Validation: on which problems, what the score is, which networks are kept or given up."""

import math

import pytest
import torch
from same_cases import assert_same
from training_cases import copies, make

from metaopt import LearnedOptimizer, UserError
from metaopt.evaluation.rollout import rollout
from metaopt.tasks import FAMILIES, Regression, RegressionFamily
from metaopt.tasks.seeds import VALIDATION
from metaopt.training import TaskDistribution


class GivenLosses(Regression):
    """Tasks whose losses are given, ``(steps + 1, B)``, wherever the weights are."""

    given: torch.Tensor

    def forward(self, step=0):
        return 0 * super().forward() + self.given[step]


class Scripted(TaskDistribution):
    """The tasks of another distribution, validated on two tasks of the next of given losses."""

    def __init__(self, real, scripts):
        self.real, self.scripts = real, scripts

    def draw(self, batch_size, generator):
        return self.real.draw(batch_size, generator)

    def validation(self, count):
        return [(self, 2)]

    def sample(self, seeds):
        tasks = RegressionFamily.square(3).sample(seeds)
        tasks = GivenLosses([tasks.W1.detach(), tasks.W2.detach()], tasks.x, tasks.y)
        tasks.given = self.scripts.pop(0)
        return tasks


def mean_logs(trainer, family, count):
    """The mean log10 losses of the first validation tasks of a family, after steps 2 and 4."""
    tasks = family.sample(range(VALIDATION.start, VALIDATION.start + count))
    losses = rollout(tasks, LearnedOptimizer(tasks, trainer.averaged), 4).losses
    return losses[[2, 4]].log10().mean(dim=1)


def test_validation_takes_the_first_validation_seeds_at_the_reference_width(sampled):
    trainer = make(validation_problems=3)
    sampled.clear()  # the action was checked on a task of each kind
    trainer.validate()
    assert sampled == [(20, [VALIDATION.start + i for i in range(3)])]


def test_other_families_are_validated_on_a_quarter_as_many_and_count_as_much():
    names = ("width_8", "three_layers")
    trainer = make(validation_problems=8, validation_families=names)
    families = {RegressionFamily.square(20): 8} | {FAMILIES[name]: 2 for name in names}
    assert dict(trainer.tasks.validation(8)) == families
    means = [mean_logs(trainer, family, count) for family, count in families.items()]
    assert trainer.validate()["score"] == pytest.approx(torch.stack(means).mean().item(), abs=1e-5)


def test_validation_score_is_the_mean_log10_loss_and_the_best_networks_are_kept():
    """Losses at steps 2 and 4 count; a lost problem counts as 1e38."""
    scripts = []
    for level in (1e-3, 1e-7, math.nan, 1e-5):
        losses = torch.full((5, 2), 1e30)
        losses[2], losses[4] = torch.tensor([1e-1, 1e-2]), torch.tensor([level, 1e-3])
        scripts.append(losses)
    trainer, seen, scores = make(), [], []
    trainer.tasks = Scripted(trainer.tasks, scripts)
    while scripts:
        with torch.no_grad():
            trainer.averaged.update.lstm.head_bias.add_(1.0)
        seen.append(copies(trainer.averaged))
        scores.append(trainer.validate()["score"])
    assert scores == pytest.approx([-(1.5 + n) / 2 for n in (3.0, 5.0, -17.5, 4.0)])
    assert trainer.best_score == scores[1]
    assert_same(trainer.best, seen[1])


def test_much_worse_networks_are_given_up_for_the_best_and_training_goes_on_at_half_rate():
    trainer, scripts = make(rollback=0.5, learning_rate_update=1e-3, schedule="constant"), []
    trainer.tasks = Scripted(trainer.tasks, scripts)

    def scored(score):
        scripts.append(torch.full((5, 2), 10.0**score))
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
    expected = mean_logs(trainer, RegressionFamily.square(20), 2).tolist()
    assert [numbers[f"log10_loss_at_{t}"] for t in (2, 4)] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("meta_loss", ["log_last", "sum"])
def test_losses_that_fall_below_0_end_the_run_in_one_line(meta_loss, monkeypatch):
    """Also where they are above 0 at the start."""
    trainer = make(meta_loss=meta_loss)
    whole = Regression.forward
    monkeypatch.setattr(Regression, "forward", lambda *given: whole(*given) - 1e12)
    for call in (trainer.train_batch, trainer.validate):
        with pytest.raises(UserError, match=r"expected losses of 0 or more, .* got -\d"):
            call()
    monkeypatch.setattr(Regression, "forward", lambda *given: 0.0 * whole(*given) - 1e-9)
    trainer.validate()  # a rounding error
