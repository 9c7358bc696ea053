"""Training and validation on minibatches."""

import math
from fractions import Fraction

import pytest
import torch
from same_cases import assert_same
from torch import Tensor
from training_cases import copies

from metaopt import LearnedOptimizer, UserError
from metaopt.evaluation.rollout import rollout
from metaopt.learned.spec import MetaOptimizerSpec
from metaopt.tasks import FAMILIES, MinibatchFamily, first_seeds
from metaopt.tasks.seeds import TEST, TRAINING, VALIDATION
from metaopt.training.distributions import (
    MINIBATCH_VALIDATION,
    TASK_DISTRIBUTIONS,
    MinibatchTraining,
    RegressionTasks,
)
from metaopt.training.run import run_training
from metaopt.training.spec import TrainingSpec
from metaopt.training.trainer import Trainer, smoothed

SHORT = {
    "problems": "minibatches", "steps": 10, "window": 5, "batch_size": 2, "trajectories": 4,
    "validation_problems": 1, "validation_at": (5, 10), "validation_every": 2,
    "estimator": "truncated", "average": 0.3,
}  # fmt: skip
NETWORKS = {"update": "layerwise", "element": "none", "hidden": 4}
FILES = ("last.safetensors", "best.safetensors")
INF = math.inf


def make(networks: dict | None = None, **fields) -> Trainer:
    spec = MetaOptimizerSpec(**(NETWORKS if networks is None else networks))
    return Trainer(spec, TrainingSpec(**{**SHORT, **fields}))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def sampled(monkeypatch):
    """(family, seeds) of every batch of problems drawn."""
    drawn = []
    original = MinibatchFamily.sample

    def sample(self, seeds):
        seeds = list(seeds)
        drawn.append((self, seeds))
        return original(self, seeds)

    monkeypatch.setattr(MinibatchFamily, "sample", sample)
    return drawn


def test_the_generator_alone_decides_the_draws():
    before = torch.get_rng_state()
    first, second, other = (generator(seed) for seed in (1, 1, 2))
    for _ in range(3):
        own, same, another = (
            MinibatchTraining().draw(4, drawn).sample() for drawn in (first, second, other)
        )
        assert own.family == same.family != another.family
        assert_same(copies(own), copies(same))
        assert own.batch == 4
    assert torch.equal(torch.get_rng_state(), before)


RANGES = {
    "input": (8, 128), "hidden": (8, 48), "output": (1, 10), "weight_scale": (0.5, 2.0),
    "data_scale": (0.5, 2.0), "decay": (0.1, 1.2), "noise": (0.01, 0.5),
}  # fmt: skip
CHOICES = {
    "kind": {"classification", "regression"},
    "depth": {2, 3, 4, 5},
    "samples": {1024},
    "minibatch": {8, 16, 20, 32, 64, 128},
    "activation": {"relu", "leaky_relu", "tanh", "gelu"},
    "residual": {False, True},
}


@pytest.fixture(scope="module")
def many() -> list[tuple[MinibatchFamily, Tensor]]:
    """(family, losses at the start) of a hundred batches."""
    drawn = generator()
    problems = (MinibatchTraining().draw(1, drawn).sample() for _ in range(100))
    return [(problem.family, problem().detach()) for problem in problems]


@pytest.mark.parametrize(("name", "bounds"), RANGES.items(), ids=RANGES)
def test_sizes_and_scales_are_drawn_from_all_of_their_range(many, name, bounds):
    values = [getattr(family, name) for family, _ in many]
    low, high = bounds
    assert low <= min(values) < low * (high / low) ** 0.2
    assert low * (high / low) ** 0.8 < max(values) <= high
    assert all(isinstance(value, int) for value in values) == (
        name in ("input", "hidden", "output")
    )


@pytest.mark.parametrize(("name", "choices"), CHOICES.items(), ids=CHOICES)
def test_each_choice_is_drawn(many, name, choices):
    assert {getattr(family, name) for family, _ in many} == choices


def test_classes_are_at_least_two_and_initial_losses_are_ordinary(many):
    assert all(f.output >= 2 for f, _ in many if f.kind == "classification")
    assert all(f.output <= 8 for f, _ in many if f.kind == "regression")
    losses = torch.cat([losses for _, losses in many])
    assert losses.shape == (100,)
    assert 0.01 < losses.min() < losses.max() < 100


def test_training_takes_training_seeds_and_validation_validation_seeds(sampled):
    trainer = make()
    while not trainer.finished:
        trainer.train_batch()
    trained = [seed for _, seeds in sampled for seed in seeds]
    assert len(set(trained)) == len(trained) == 4
    assert all(s in TRAINING and s not in TEST and s not in VALIDATION for s in trained)
    sampled.clear()
    trainer.validate()
    assert [family for family, _ in sampled] == list(MINIBATCH_VALIDATION.values())
    assert all(s in VALIDATION and s not in TEST for _, seeds in sampled for s in seeds)


def test_validation_has_the_families_that_the_table_says():
    tasks = RegressionTasks(validation_families=("width_40",), loss="norm")
    (reference, count), (other, fewer) = tasks.validation(9)
    assert (reference, count, fewer) == (tasks.reference, 9, 2)
    assert (other.hidden, other.loss) == (FAMILIES["width_40"].hidden, "norm")
    pairs = MinibatchTraining().validation(9)
    assert pairs == [(family, 9) for family in MINIBATCH_VALIDATION.values()]
    assert {family.kind for family, _ in pairs} == CHOICES["kind"]
    smoothing = {name: tasks.smoothing for name, tasks in TASK_DISTRIBUTIONS.items()}
    assert smoothing == {"regression": 0.0, "minibatches": 0.1, "networks": 0.0, "task": 0.0}


def test_unknown_problems_are_refused():
    with pytest.raises(
        UserError, match="problems of regression, minibatches, networks, task, got 'nonsense'"
    ):
        TrainingSpec(problems="nonsense")


NEED_A_CHAIN = {
    "the default": {},
    "m1": {"update": "coordinatewise", "element": "none"},
    "m1 of one rate": {"update": "step_size", "element": "none"},
    "m2": {"update": "layerwise"},
}


@pytest.mark.parametrize("networks", NEED_A_CHAIN.values(), ids=NEED_A_CHAIN)
def test_networks_that_need_a_chain_of_layers_are_refused_on_minibatches(networks):
    with pytest.raises(UserError):
        make(networks).train_batch()


def naive_smoothed(losses: Tensor, fraction: Fraction) -> Tensor:
    rows = []
    for end in range(1, len(losses) + 1):
        count = math.ceil(fraction * end)
        rows.append(torch.stack([losses[end - 1 - i] for i in range(count)]).mean(dim=0))
    return torch.stack(rows)


@pytest.mark.parametrize("fraction", [Fraction(1, 10), Fraction(1, 4), Fraction(1, 2), Fraction(1)])
@pytest.mark.parametrize("steps", [1, 2, 10, 101])
def test_smoothing_is_the_mean_over_the_last_part_of_the_steps(steps, fraction):
    losses = torch.rand(steps, 3, generator=generator(), dtype=torch.float64)
    own = smoothed(losses, float(fraction))
    torch.testing.assert_close(own, naive_smoothed(losses, fraction), rtol=1e-10, atol=0)


@pytest.mark.parametrize("spike", [1e6, 1e20, INF])
def test_a_spike_that_is_over_does_not_count_any_more(spike):
    losses = torch.rand(51, 2, generator=generator(), dtype=torch.float64) + 0.5
    losses[3, 1] = spike
    expected = naive_smoothed(losses, Fraction(1, 10))
    torch.testing.assert_close(smoothed(losses, 0.1), expected, rtol=1e-6, atol=0)


def test_without_a_fraction_losses_stay_as_they_are():
    losses = torch.rand(7, 2)
    assert smoothed(losses, 0.0) is losses


def test_the_score_is_the_mean_log_of_smoothed_losses_over_families_and_steps():
    trainer = make(validation_problems=2)
    trainer.train_batch()
    logs = []
    for family in MINIBATCH_VALIDATION.values():
        problem = family.sample(first_seeds("validation", 2))
        losses = rollout(problem, LearnedOptimizer(problem, trainer.averaged), 10).losses
        logs.append(naive_smoothed(losses, Fraction(1, 10)).log10().mean(dim=1)[[5, 10]])
    found = trainer.validate()
    assert found["score"] == pytest.approx(float(torch.stack(logs).mean()), rel=1e-6)
    for position, step in enumerate((5, 10)):
        assert found[f"log10_loss_at_{step}"] == pytest.approx(float(logs[0][position]), rel=1e-6)
    assert trainer.best_score == found["score"]


def trained(**fields) -> tuple[Trainer, list[dict[str, float]]]:
    trainer, logged = make(**fields), []
    while not trainer.finished:
        logged.append(trainer.train_batch() | trainer.validate())
    return trainer, logged


@pytest.mark.parametrize("meta_loss", ["log_last", "log"])
def test_a_run_logs_finite_numbers_and_moves_the_networks(meta_loss):
    trainer, logged = trained(meta_loss=meta_loss)
    assert len(logged) == 2
    assert all(math.isfinite(value) for numbers in logged for value in numbers.values())
    assert all(numbers["skipped"] == 0 for numbers in logged)
    assert trainer.meta_steps == 4
    start = make().meta.state_dict()
    for meta in (trainer.meta, trainer.averaged):
        assert all(not torch.equal(t, start[name]) for name, t in meta.state_dict().items())


def test_the_same_seed_gives_the_same_weights_bit_for_bit_and_another_others():
    (first, logged), (second, again), (other, _) = trained(), trained(), trained(seed=1)
    assert_same(first.meta.state_dict(), second.meta.state_dict())
    assert_same(first.averaged.state_dict(), second.averaged.state_dict())
    assert logged == again
    assert not torch.equal(first.meta.update.lstm.head_bias, other.meta.update.lstm.head_bias)


def contents(out) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in FILES}


class Killed(BaseException):
    """No ``except Exception`` may stop it."""


def test_a_run_that_was_killed_and_resumed_ends_with_the_same_bytes(monkeypatch, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_training(make(), whole, resume=False, overwrite=False)
    real, calls = Trainer.train_batch, []

    def train_batch(self):
        calls.append(None)
        if len(calls) == 2:
            raise Killed
        return real(self)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train_batch", train_batch)
        with pytest.raises(Killed):
            run_training(make(), killed, resume=False, overwrite=False)
    assert contents(killed) != contents(whole)
    run_training(make(), killed, resume=True, overwrite=False)
    assert contents(killed) == contents(whole)
