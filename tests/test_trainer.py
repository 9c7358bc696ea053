"""The trainer: which problems it takes, how it steps m1 and m2, what it keeps."""

import math

import pytest
import torch
from torch import Tensor, nn

from metaopt import LearnedOptimizer, UserError
from metaopt.evaluation.rollout import Trajectory, rollout
from metaopt.learned.meta_optimizer import MetaOptimizer, MetaOptimizerSpec
from metaopt.problems import RegressionFamily
from metaopt.problems.seeds import TEST, TRAINING, VALIDATION
from metaopt.training import trainer as trainer_module
from metaopt.training.estimators import ESTIMATORS
from metaopt.training.spec import TrainingSpec, constant, cosine
from metaopt.training.trainer import Trainer
from metaopt.training.unroll import Window

TINY = {
    "trajectories": 8,
    "batch_size": 1,
    "steps": 6,
    "window": 3,
    "widths": (8,),
    "validation_problems": 2,
    "validation_at": (2, 4),
}


def make(networks: dict | None = None, **fields) -> Trainer:
    return Trainer(
        MetaOptimizerSpec(**{"hidden": 4, **(networks or {})}), TrainingSpec(**{**TINY, **fields})
    )


def copies(meta: MetaOptimizer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in meta.state_dict().items()}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    torch.testing.assert_close(dict(first), second, rtol=0, atol=0)


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


def test_training_takes_training_seeds_only_and_does_not_repeat_them(sampled):
    trainer = make(trajectories=4)
    while not trainer.finished:
        trainer.train_batch()
    seeds = [seed for _, batch in sampled for seed in batch]
    assert all(s in TRAINING and s not in TEST and s not in VALIDATION for s in seeds)
    assert len(set(seeds)) == len(seeds) >= len(sampled) == 4


def test_validation_takes_the_first_validation_seeds_at_the_reference_width(sampled):
    make(validation_problems=3).validate()
    assert sampled == [(20, [VALIDATION.start + i for i in range(3)])]


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


def test_cosine_goes_from_the_rate_to_the_final_rate_and_constant_stays():
    assert cosine(3e-3, 1e-5, 0.0) == pytest.approx(3e-3)
    assert cosine(3e-3, 1e-5, 0.5) == pytest.approx((3e-3 + 1e-5) / 2)
    assert cosine(3e-3, 1e-5, 1.0) == pytest.approx(1e-5)
    rates = [cosine(3e-3, 1e-5, i / 10) for i in range(11)]
    assert rates == sorted(rates, reverse=True)
    assert {constant(3e-3, 1e-5, i / 10) for i in range(11)} == {3e-3}


@pytest.mark.parametrize(
    ("schedule", "end"), [("cosine", (1e-5, 1e-5)), ("constant", (2e-3, 4e-3))]
)
def test_both_rates_follow_the_schedule_over_the_budget(schedule, end):
    trainer = make(schedule=schedule, learning_rate_update=2e-3, learning_rate_element=4e-3)
    assert trainer.train_batch()["learning_rate"] == pytest.approx(2e-3)
    trainer.trajectories = trainer.spec.trajectories
    trainer._set_rates()
    assert tuple(g["lr"] for g in trainer.adam.param_groups) == pytest.approx(end)


def fake_windows(monkeypatch, windows: list[list[tuple[float, float]]]) -> None:
    """Each batch's windows, as (meta-loss, value of every entry of the meta-gradient)."""
    remaining = iter(windows)

    def unroll(problem, optimizer, steps, window, meta_loss):
        for value, entry in next(remaining):
            gradients = [torch.full_like(p, entry) for p in optimizer.meta.parameters()]
            losses = torch.ones(window, problem.batch)
            yield Window(torch.tensor(value), gradients, losses, torch.tensor(0))

    monkeypatch.setitem(ESTIMATORS, "truncated", lambda spec, generator: unroll)


@pytest.mark.parametrize(("clip", "entry"), [(0.1, 3.0), (0.1, 1e-6), (0.0, 3.0)])
def test_clipping_bounds_the_norm_of_the_whole_meta_gradient_and_keeps_its_direction(
    monkeypatch, clip, entry
):
    trainer = make(clip=clip)
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
    trainer = make()
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


def test_max_skips_in_a_row_end_the_run_with_a_message_and_a_good_step_starts_the_count_anew(
    monkeypatch,
):
    trainer = make(max_skips=3)
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


BAD_SPECS = [
    {"trajectories": 0}, {"window": 0}, {"widths": ()}, {"widths": (0,)}, {"validation_at": ()},
    {"learning_rate_update": 0.0}, {"learning_rate_element": math.inf}, {"clip": -1.0},
    {"clip": math.nan}, {"schedule": "nope"}, {"meta_loss": "nope"}, {"loss": "nope"},
    {"dtype": "nope"}, {"slopes": (0.1, 0.0)}, {"slopes": ()}, {"depths": (2, 1)},
    {"distributions": ("nope",)}, {"seed": -1}, {"log_floor": -1.0}, {"max_skips": 0},
    {"estimator": "nope"}, {"pes_sigma": 0.0}, {"pes_sigma": math.nan}, {"pes_pairs": 0},
]  # fmt: skip


@pytest.mark.parametrize("fields", BAD_SPECS, ids=str)
def test_bad_specs_raise_a_user_error_of_one_line(fields):
    with pytest.raises(UserError, match=r"^expected .*, got .*$"):
        TrainingSpec(**fields)


def test_flat_networks_are_refused_before_training_where_sizes_differ():
    with pytest.raises(UserError, match="flat_widths"):
        Trainer(MetaOptimizerSpec(update="flat", element="none"), TrainingSpec(widths=(8,)))


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
