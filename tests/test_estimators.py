"""Estimators of the meta-gradient: PES against formulas, finite differences, backpropagation."""

import gc
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from same_cases import assert_same
from test_unroll import METHODS, build, float64_networks, make_problem  # noqa: F401
from torch import Tensor, nn
from training_cases import copies

from metaopt.learned.meta_optimizer import MetaOptimizer, MetaOptimizerSpec
from metaopt.learned.observation import flatten
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.learned.update import CoordinatewiseUpdate
from metaopt.tasks import Regression, RegressionFamily
from metaopt.training import estimators
from metaopt.training.estimators import ESTIMATORS
from metaopt.training.meta_loss import LogMean
from metaopt.training.particles import OneByOne, Together, particles
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


def perturbations(
    meta: MetaOptimizer, sigma: float, generator: torch.Generator, pairs: int, tasks: int
) -> Tensor:
    """The eps that an evolution strategy draws next, ``(pairs, tasks, coordinates)``."""
    drawn = [
        torch.randn(pairs, tasks, *p.shape, generator=generator, dtype=p.dtype)
        for p in meta.parameters()
    ]
    return sigma * torch.cat([eps.flatten(2) for eps in drawn], dim=2)


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
@pytest.mark.parametrize("name", ["pes", "es"])
@pytest.mark.parametrize("method", METHODS)
def test_of_one_step_each_pair_sees_the_backpropagated_gradient_of_its_task(method, name):
    """eps (eps . gradient) / sigma^2, whose mean is the gradient."""
    meta, problem, sigma = build(method).double(), make_problem(), 1e-5
    (own,) = estimate(name, meta, problem, 1, 1, seeded(4), pes_sigma=sigma, pes_pairs=2)
    tasks = [problem.select([b]) for b in range(problem.batch)]
    gradient = torch.stack([summed(estimate("truncated", meta, task, 1, 1)) for task in tasks])
    eps = perturbations(meta, sigma, seeded(4), 2, len(tasks))
    along = (eps * gradient).sum(dim=-1, keepdim=True)
    expected = (eps * along).mean(dim=(0, 1)) / sigma**2
    scale = expected.abs().max().item()
    torch.testing.assert_close(flatten(own.gradients), expected, rtol=1e-4, atol=1e-4 * scale)


class Quadratic:
    """In place of particles: losses that are a quadratic of theta, and more after each step."""

    def __init__(self, problem: Regression, optimizer: LearnedOptimizer, copies: int) -> None:
        self.number = copies * problem.batch
        self.restarted: list[list[int]] = []

    def advance(self, theta: list[Tensor], start: int, count: int) -> tuple[Tensor, Tensor]:
        row = torch.cat([t.flatten(1) for t in theta], dim=1).double()
        assert len(row) == self.number
        value = (row + row**2 / 2).sum(dim=1)
        return value * torch.arange(1.0, count + 1).double()[:, None], torch.tensor(count)

    def restart(self, indices: list[int]) -> None:
        self.restarted.append(list(indices))


@pytest.mark.parametrize(("name", "staggered"), [("pes", False), ("pes", True), ("es", False)])
def test_xi_sums_the_perturbations_and_theta_may_move_between_windows(monkeypatch, name, staggered):
    """Of a quadratic, the difference of a pair is exactly 2 eps . gradient."""
    made: list[Quadratic] = []

    def particles(*arguments):
        made.append(Quadratic(*arguments))
        return made[-1]

    monkeypatch.setattr(estimators, "particles", particles)
    meta, sigma, pairs, generator = build("LSTM(update)").double(), 0.5, 2, seeded(6)
    problem = make_problem()
    windows = estimate(
        name, meta, problem, 5, 2, seeded(6), lambda losses: losses.sum(),
        pes_sigma=sigma, pes_pairs=pairs, pes_staggered=staggered,
    )  # fmt: skip
    xi = torch.zeros(()).double()
    for done, (count, window) in enumerate(zip((2, 2, 1), windows, strict=True), start=1):
        theta = flatten([p.detach() for p in meta.parameters()])
        eps = perturbations(meta, sigma, generator, pairs, problem.batch)
        xi = xi + eps if name == "pes" else eps
        if staggered and done > 1:  # of three tasks and windows, 1 starts again at 2, 2 at 1
            again = {2: 2, 3: 1}[done]
            xi[:, again] = eps[:, again]
            assert made[0].restarted[-1] == [again + 3 * c for c in range(2 * pairs)]
        slope = (eps @ (1 + theta)) * sum(range(1, count + 1))
        expected = (xi * slope.unsqueeze(-1)).mean(dim=(0, 1)) / sigma**2
        torch.testing.assert_close(flatten(window.gradients), expected)
        assert window.losses.shape == (count, 2 * pairs * problem.batch)
        assert window.rejected == sum((2, 2, 1)[:done])
        with torch.no_grad():
            meta.update.lstm.head_bias.add_(0.1)
    assert len(made[0].restarted) == 2 * staggered


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
    real = Together.advance

    def advance(self, *arguments):
        losses, rejected = real(self, *arguments)
        losses[-1, 4] = value
        return losses, rejected

    monkeypatch.setattr(Together, "advance", advance)
    (window,) = estimate("pes", build("LSTM(update)"), make_problem(), 2, 2, pes_pairs=3)
    assert not any(g.isfinite().any() for g in window.gradients)
    assert not window.meta_loss.isfinite()


RULES = {
    "coordinatewise": {"hidden": 4},
    "plain heads": {"hidden": 4, "heads": ("plain",)},
    "layerwise": {"update": "layerwise", "hidden": 4},
    "tensorwise": {"update": "tensorwise", "hidden": 4},
}


@pytest.mark.parametrize("name", RULES)
def test_particles_together_are_the_particles_one_by_one(name):
    meta = MetaOptimizer(MetaOptimizerSpec(element="none", **RULES[name]), seed=1)
    for parameter in meta.parameters():
        nn.init.normal_(parameter, std=0.3, generator=seeded(3))
    problem = make_problem()
    theta = [
        p.detach() + 0.1 * torch.randn(6, *p.shape, generator=seeded(4)) for p in meta.parameters()
    ]
    runs = [kind(problem, meta, 2) for kind in (Together, OneByOne)]
    for start, again in ((0, [1, 4]), (3, [0]), (6, [])):
        (losses, rejected), (expected, _) = (run.advance(theta, start, 3) for run in runs)
        torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-7)
        assert rejected == 0
        for run in runs:
            run.restart(again)
    assert len(set(losses[-1].tolist())) == 6


def test_a_rule_that_vmap_cannot_run_is_stepped_one_by_one_and_says_so(monkeypatch):
    real = CoordinatewiseUpdate.propose

    def propose(self, seen, state):
        assert bool((seen.gradients[0] == seen.gradients[0]).any())
        return real(self, seen, state)

    monkeypatch.setattr(CoordinatewiseUpdate, "propose", propose)
    meta, problem = build("LSTM(update)"), make_problem()
    with pytest.warns(UserWarning, match="stepped one by one, as torch.vmap cannot run the update"):
        runs = particles(problem, LearnedOptimizer(problem, meta), 2)
    assert isinstance(runs, OneByOne)


def test_selected_tasks_hold_the_present_weights_and_are_apart():
    problem = make_problem()
    with torch.no_grad():
        problem.W1.add_(1.0)
    chosen = problem.select([2, 0, 2, 1])
    assert torch.equal(chosen(), problem()[[2, 0, 2, 1]])
    with torch.no_grad():
        chosen.W1.zero_()
    assert problem.W1.all()
