"""Estimators of the meta-gradient: PES against formulas, finite differences, backpropagation."""

import gc
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from same_cases import assert_same
from test_unroll import METHODS, build, float64_networks, make_problem  # noqa: F401
from torch import Tensor, nn
from training_cases import copies

from metaopt.learned.meta_optimizer import MetaOptimizer, MetaOptimizerSpec
from metaopt.learned.observation import flatten
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.tasks import Regression, RegressionFamily
from metaopt.training import estimators
from metaopt.training.estimators import ESTIMATORS
from metaopt.training.meta_loss import LogMean
from metaopt.training.spec import TrainingSpec
from metaopt.training.unroll import Window

LOG = LogMean(1e-6)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def estimate(
    name: str,
    meta: MetaOptimizer,
    problem: Regression,
    steps: int,
    window: int,
    generator: torch.Generator | None = None,
    meta_loss: Callable[[Tensor], Tensor] = LOG,
    **fields,
) -> Iterator[Window]:
    optimizer, drawn = LearnedOptimizer(problem, meta), generator or seeded(0)
    estimator = TrainingSpec(estimator=name, **fields).gradient_estimator
    return estimator.windows(problem, optimizer, steps, window, meta_loss, drawn)


def summed(windows: Iterator[Window]) -> Tensor:
    """The meta-gradient of a whole trajectory, a row."""
    return torch.stack([flatten(window.gradients) for window in windows]).sum(dim=0)


def perturbations(meta: MetaOptimizer, sigma: float, generator: torch.Generator) -> Tensor:
    """The eps that PES draws next, a row."""
    return sigma * flatten(
        [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in meta.parameters()]
    )


# What PES estimates.


def finite_differences(meta: MetaOptimizer, value: Callable[[], float], h: float = 1e-5) -> Tensor:
    """d value / d theta, a row."""
    slopes = []
    for parameter in meta.parameters():
        entries = parameter.data.view(-1)
        for i, kept in enumerate(entries.tolist()):
            shifted = []
            for entry in (kept + h, kept - h):
                entries[i] = entry
                shifted.append(value())
            entries[i] = kept
            slopes.append((shifted[0] - shifted[1]) / (2 * h))
    return torch.tensor(slopes, dtype=torch.float64)


@pytest.mark.usefixtures("float64_networks")
@pytest.mark.parametrize("steps", [1, 3])
def test_the_mean_of_pes_is_the_gradient_of_the_whole_trajectory(steps):
    """With the effect of each window on the later ones, and through what the networks see: of one
    step backpropagation is as right, of three windows of one step it is far off."""
    spec = MetaOptimizerSpec(element="none", hidden=1, heads=("free", "scaled_gradient"))
    meta = MetaOptimizer(spec).double()
    generator, pairs = seeded(2), 200
    for parameter in meta.parameters():
        nn.init.normal_(parameter, std=0.7, generator=generator)
    problem = RegressionFamily(2, 2, 2, 2, dtype="float64").sample([1])

    def total() -> float:
        return sum(w.meta_loss.item() for w in estimate("truncated", meta, problem, steps, 1))

    truth = finite_differences(meta, total)
    backpropagated = summed(estimate("truncated", meta, problem, steps, 1))
    share = (backpropagated @ truth / (truth @ truth)).item()
    if steps == 1:
        torch.testing.assert_close(backpropagated, truth, rtol=1e-5, atol=1e-8)
    else:
        assert share < 0.6

    estimates = torch.stack(
        [
            summed(estimate("pes", meta, problem, steps, 1, generator, pes_sigma=1e-4))
            for _ in range(pairs)
        ]
    )
    directions = torch.randn(4, len(truth), generator=generator, dtype=torch.float64)
    directions[0] = truth
    along = estimates @ directions.mT
    error = along.std(dim=0) / math.sqrt(pairs)
    assert error[0] < 0.125 * (truth @ truth)  # or the next line would say nothing
    assert ((along.mean(dim=0) - directions @ truth).abs() < 4 * error).all()


@pytest.mark.usefixtures("float64_networks")
@pytest.mark.parametrize("method", METHODS)
def test_of_one_step_each_pair_sees_the_backpropagated_gradient_along_its_perturbation(method):
    """eps (eps . gradient) / sigma^2, whose mean is the gradient."""
    meta, problem, sigma = build(method).double(), make_problem(), 1e-5
    (own,) = estimate("pes", meta, problem, 1, 1, seeded(4), pes_sigma=sigma, pes_pairs=2)
    gradient = summed(estimate("truncated", meta, problem, 1, 1))
    generator = seeded(4)
    pairs = [perturbations(meta, sigma, generator) for _ in range(2)]
    expected = torch.stack([eps * (eps @ gradient) for eps in pairs]).mean(dim=0) / sigma**2
    scale = expected.abs().max().item()
    torch.testing.assert_close(flatten(own.gradients), expected, rtol=1e-4, atol=1e-4 * scale)


def quadratic(problem: Regression, optimizer: LearnedOptimizer, steps: int, **_) -> SimpleNamespace:
    """Instead of a rollout: losses that are a quadratic of theta, and more after each step."""
    theta = flatten([p.detach() for p in optimizer.meta.parameters()]).double()
    value = (theta + theta**2 / 2).sum()
    losses = value * torch.arange(steps + 1.0, dtype=torch.float64)[:, None]
    return SimpleNamespace(losses=losses, rejected=torch.ones(steps + 1, 1).bool())


def test_xi_sums_the_perturbations_and_theta_may_move_between_windows(monkeypatch):
    """Of a quadratic, the difference of a pair is exactly 2 eps . gradient."""
    monkeypatch.setattr(estimators, "rollout", quadratic)
    meta, sigma, pairs, generator = build("LSTM(update)").double(), 0.5, 3, seeded(6)
    windows = estimate(
        "pes", meta, make_problem(), 5, 2, seeded(6), lambda losses: losses.sum(),
        pes_sigma=sigma, pes_pairs=pairs,
    )  # fmt: skip
    xi = [torch.zeros(()).double()] * pairs
    for done, (count, window) in enumerate(zip((2, 2, 1), windows, strict=True), start=1):
        theta = flatten([p.detach() for p in meta.parameters()])
        expected = []
        for i in range(pairs):
            eps = perturbations(meta, sigma, generator)
            xi[i] = xi[i] + eps
            slope = (eps @ (1 + theta)) * sum(range(1, count + 1))
            expected.append(xi[i] * slope / sigma**2)
        torch.testing.assert_close(flatten(window.gradients), torch.stack(expected).mean(dim=0))
        assert window.losses.shape == (count, 2 * pairs)
        assert window.rejected == sum((3, 3, 2)[:done]) * 2 * pairs
        with torch.no_grad():
            meta.update.lstm.head_bias.add_(0.1)


@pytest.mark.parametrize("method", METHODS)
def test_all_trajectories_of_pes_go_on_from_window_to_window_as_those_of_unroll(method):
    meta, problem = build(method), make_problem()
    for own, other in zip(
        estimate("pes", meta, problem, 7, 3, pes_sigma=1e-30, pes_pairs=2),
        estimate("truncated", meta, problem, 7, 3),
        strict=True,
    ):
        torch.testing.assert_close(own.losses, other.losses.repeat(1, 4), rtol=1e-5, atol=0)
        assert own.meta_loss.item() == pytest.approx(other.meta_loss.item(), rel=1e-5)
        assert own.rejected == 4 * other.rejected


# What every estimator keeps to.


@pytest.mark.parametrize("name", ESTIMATORS)
def test_theta_and_the_problem_stay_as_they_are(name):
    meta, problem = build("LSTM(update,tele)"), make_problem()
    before = copies(meta), copies(problem)
    for window in estimate(name, meta, problem, 5, 2, pes_pairs=2):
        assert [g.shape for g in window.gradients] == [p.shape for p in meta.parameters()]
        assert not any(t.requires_grad for t in [*window.gradients, window.losses])
        assert all(g.any() and g.isfinite().all() for g in window.gradients)
        assert_same(meta.state_dict(), before[0])
        assert_same(problem.state_dict(), before[1])
    assert all(p.grad is None for p in [*meta.parameters(), *problem.parameters()])


@pytest.mark.parametrize("name", ESTIMATORS)
def test_theta_stays_as_it_is_after_an_exception_in_a_window(name, monkeypatch):
    real, calls = MetaOptimizer.advance, 0

    def advance(self, *arguments):
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(MetaOptimizer, "advance", advance)
    meta, problem = build("LSTM(update,tele)"), make_problem()
    before = copies(meta), copies(problem)
    with pytest.raises(KeyboardInterrupt):
        list(estimate(name, meta, problem, 8, 3))
    assert_same(meta.state_dict(), before[0])
    assert_same(problem.state_dict(), before[1])
    assert all(p.requires_grad for p in meta.parameters())


@pytest.mark.parametrize("name", ESTIMATORS)
def test_memory_does_not_grow_with_the_number_of_windows(name):
    tensors = []
    windows = estimate(name, build("LSTM(update,tele)"), make_problem(), 24, 2)
    for done, _ in enumerate(windows, start=1):
        if done in (3, 12):
            gc.collect()
            tensors.append(sum(issubclass(type(o), Tensor) for o in gc.get_objects()))
    assert tensors[0] == tensors[1]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_frozen_meta_parameters_get_no_gradient(name):
    meta = build("LSTM(update,tele)")
    meta.element.requires_grad_(False)
    (window,) = estimate(name, meta, make_problem(), 3, 3)
    assert [g.shape for g in window.gradients] == [p.shape for p in meta.update.parameters()]


def test_backpropagation_draws_nothing_and_pes_from_its_generator_alone():
    meta, problem = build("LSTM(update)"), make_problem()
    drawn, globally = seeded(7), torch.get_rng_state()
    list(estimate("truncated", meta, problem, 3, 3, drawn))
    assert torch.equal(drawn.get_state(), seeded(7).get_state())
    rows = [summed(estimate("pes", meta, problem, 3, 3, seeded(s))) for s in (7, 7, 8)]
    assert torch.equal(rows[0], rows[1])
    assert not torch.allclose(rows[0], rows[2])
    assert torch.equal(torch.get_rng_state(), globally)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_one_lost_trajectory_of_several_makes_the_estimate_not_finite(monkeypatch, value):
    real, calls = estimators.rollout, []

    def rollout(*arguments, **options):
        calls.append(arguments)
        trajectory = real(*arguments, **options)
        if len(calls) == 3:
            trajectory.losses[-1, 0] = value
        return trajectory

    monkeypatch.setattr(estimators, "rollout", rollout)
    (window,) = estimate("pes", build("LSTM(update)"), make_problem(), 2, 2, pes_pairs=3)
    assert not any(g.isfinite().any() for g in window.gradients)
    assert not window.meta_loss.isfinite()
