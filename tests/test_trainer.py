"""The trainer: which problems it takes, how it steps m1 and m2, what it keeps."""

import math
from dataclasses import dataclass

import pytest
import torch
from same_cases import assert_same
from torch import nn
from training_cases import copies, make

from metaopt import LearnedOptimizer, UserError
from metaopt.evaluation.rollout import rollout
from metaopt.tasks import RegressionFamily
from metaopt.tasks.seeds import TEST, TRAINING, VALIDATION
from metaopt.training.estimators import ESTIMATORS, Estimator
from metaopt.training.trainer import Trainer
from metaopt.training.unroll import Window


def test_training_takes_training_seeds_only_and_does_not_repeat_them(sampled):
    trainer = make(trajectories=4)
    sampled.clear()  # the action was checked on a task of each kind
    while not trainer.finished:
        trainer.train_batch()
    seeds = [seed for _, batch in sampled for seed in batch]
    assert all(s in TRAINING and s not in TEST and s not in VALIDATION for s in seeds)
    assert len(set(seeds)) == len(seeds) >= len(sampled) == 4


def trained(seed: int, global_seed: int) -> Trainer:
    state = torch.get_rng_state()
    torch.manual_seed(global_seed)  # must not matter
    trainer = make(seed=seed)
    for _ in range(3):
        trainer.train_batch()
    torch.set_rng_state(state)
    return trainer


def test_the_seed_alone_decides_the_networks_bit_for_bit():
    first, second, other = trained(5, 1), trained(5, 2), trained(6, 1)
    assert_same(first.meta.state_dict(), second.meta.state_dict())
    for name, tensor in first.meta.state_dict().items():
        assert not torch.equal(tensor, other.meta.state_dict()[name])


def test_m1_and_m2_move_at_their_own_rates():
    """Adam's first step moves each weight by its rate, whatever the size of the gradient."""
    trainer = make(
        steps=3, schedule="constant", learning_rate_update=3e-2, learning_rate_element=2e-4
    )
    before = copies(trainer.meta)
    trainer.train_batch()
    assert trainer.meta_steps == 1
    moved = {"update": 0.0, "element": 0.0}
    for name, tensor in trainer.meta.state_dict().items():
        network = name.split(".")[0]
        moved[network] = max(moved[network], (tensor - before[name]).abs().max().item())
    assert moved == pytest.approx({"update": 3e-2, "element": 2e-4}, rel=1e-2)


def test_without_m2_there_is_one_group():
    trainer = make({"element": "none"})
    assert [len(g["params"]) for g in trainer.adam.param_groups] == [
        len(list(trainer.meta.update.parameters()))
    ]
    trainer.train_batch()


@pytest.mark.parametrize(
    ("schedule", "end"), [("cosine", (1e-5, 1e-5)), ("constant", (2e-3, 4e-3))]
)
def test_both_rates_follow_the_schedule_over_the_budget(schedule, end):
    trainer = make(schedule=schedule, learning_rate_update=2e-3, learning_rate_element=4e-3)
    assert trainer.train_batch()["learning_rate"] == pytest.approx(2e-3)
    trainer.trajectories = trainer.spec.trajectories
    trainer._set_rates()
    assert tuple(g["lr"] for g in trainer.adam.param_groups) == pytest.approx(end)


def step_by(monkeypatch, unroll) -> None:
    """Put another estimator in the place of the default one."""

    @dataclass(frozen=True)
    class Other(Estimator):
        def windows(self, problem, optimizer, steps, window, meta_loss, generator):
            return unroll(problem, optimizer, steps, window, meta_loss)

    monkeypatch.delitem(ESTIMATORS, "truncated")  # a name that is taken is not given twice
    monkeypatch.setitem(ESTIMATORS, "truncated", Other)


def fake_windows(monkeypatch, windows: list[list[tuple[float, float]]]) -> None:
    """Each batch's windows, as (meta-loss, value of every entry of the meta-gradient)."""
    remaining = iter(windows)

    def unroll(problem, optimizer, steps, window, meta_loss):
        for value, entry in next(remaining):
            gradients = [torch.full_like(p, entry) for p in optimizer.meta.parameters()]
            losses = torch.ones(window, problem.batch)
            yield Window(torch.tensor(value), gradients, losses, torch.tensor(0))

    step_by(monkeypatch, unroll)


@pytest.mark.parametrize(("clip", "entry"), [(0.1, 3.0), (0.1, 1e-6), (0.0, 3.0)])
def test_clipping_bounds_the_norm_of_the_whole_meta_gradient_and_keeps_its_direction(
    monkeypatch, clip, entry
):
    trainer = make(clip=clip, steps=3)
    fake_windows(monkeypatch, [[(1.0, entry)]])
    numbers = trainer.train_batch()
    flat = torch.cat([p.grad.flatten() for p in trainer.meta.parameters()])
    raw = entry * math.sqrt(flat.numel())
    assert numbers["gradient_norm"] == pytest.approx(raw, rel=1e-5)
    assert flat.norm().item() == pytest.approx(min(raw, clip or math.inf), rel=1e-5)
    torch.testing.assert_close(flat, flat[:1].expand_as(flat))


BAD = {
    "infinite gradient": (1.0, math.inf),
    "NaN gradient": (1.0, math.nan),
    "NaN loss": (math.nan, 1.0),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_non_finite_meta_gradient_is_skipped_and_counted_and_ends_its_batch(monkeypatch, bad):
    trainer = make(steps=3)
    fake_windows(monkeypatch, [[(1.0, 0.1)], [BAD[bad], (1.0, 0.1)], [(1.0, 0.1)]])
    trainer.train_batch()
    before = copies(trainer.meta)
    numbers = trainer.train_batch()
    assert_same(trainer.meta.state_dict(), before)
    assert (trainer.skipped, trainer.skipped_in_row, trainer.meta_steps) == (1, 1, 1)
    assert numbers["skipped"] == 1.0
    assert trainer.trajectories == 2
    trainer.train_batch()
    assert (trainer.skipped, trainer.skipped_in_row, trainer.meta_steps) == (1, 0, 2)


def test_a_batch_ends_where_its_losses_are_far_below_the_floor_and_not_before(monkeypatch):
    levels = [[1e-16, 1e-14], [1e-16, 0.9e-15], [1e-16, 1e-16]]

    def unroll(problem, optimizer, steps, window, meta_loss):
        for level in levels:
            gradients = [torch.ones_like(p) for p in optimizer.meta.parameters()]
            losses = torch.tensor([[1.0, 1.0], level], dtype=torch.float64)
            yield Window(torch.tensor(1.0), gradients, losses, torch.tensor(0))

    step_by(monkeypatch, unroll)
    trainer = make(log_floor=1e-12, steps=9)
    trainer.train_batch()
    assert trainer.meta_steps == 2
    assert (trainer.trajectories, trainer.skipped) == (1, 0)


def test_max_skips_in_a_row_end_the_run_with_a_message_and_a_good_step_starts_the_count_anew(
    monkeypatch,
):
    trainer = make(max_skips=3, steps=3)
    good, bad = [(1.0, 0.1)], [(1.0, math.inf)]
    fake_windows(monkeypatch, [bad, bad, good, bad, bad, bad])
    for _ in range(5):
        trainer.train_batch()
    with pytest.raises(UserError, match=r"expected finite meta-gradients, got 3 non-finite ones"):
        trainer.train_batch()
    assert trainer.skipped == 5


def test_enormous_networks_are_skipped_without_poisoning_the_weights():
    trainer = make({"heads": ("plain",)}, max_skips=2)
    nn.init.constant_(trainer.meta.update.lstm.head_bias, 1e38)
    before = copies(trainer.meta)
    trainer.train_batch()
    assert trainer.skipped == 1
    assert_same(trainer.meta.state_dict(), before)
    with pytest.raises(UserError, match="non-finite"):
        trainer.train_batch()


@pytest.mark.parametrize("element", ["none", "coordinatewise", "spectral"])
def test_a_little_meta_training_lowers_the_loss_of_unseen_problems(element):
    trainer = make(
        {"hidden": 8, "element": element, "heads": ("free", "scaled_gradient")},
        trajectories=12, widths=(6,), steps=20, window=5, learning_rate_update=1e-2, seed=2,
    )  # fmt: skip
    problem = RegressionFamily.square(6)
    seeds = range(VALIDATION.start, VALIDATION.start + 16)

    def score() -> float:
        fresh = problem.sample(seeds)
        losses = rollout(fresh, LearnedOptimizer(fresh, trainer.meta), 20).losses
        return losses[1:].log().mean().item()

    before = score()
    while not trainer.finished:
        trainer.train_batch()
    assert trainer.skipped == 0
    assert score() < before - 0.5


def test_what_is_shipped_is_the_moving_average_over_meta_steps():
    trainer = make(average=0.75, batch_size=1, steps=4, window=2)
    name, parameter = next(iter(trainer.meta.named_parameters()))
    expected = parameter.detach().clone()
    real = trainer.adam.step

    def step() -> None:
        real()
        expected.mul_(0.75).add_(parameter.detach(), alpha=0.25)

    trainer.adam.step = step
    trainer.train_batch()
    trainer.train_batch()
    assert trainer.meta_steps == 4
    torch.testing.assert_close(dict(trainer.averaged.named_parameters())[name].detach(), expected)
    assert not torch.equal(expected, parameter)
