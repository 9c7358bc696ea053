"""The driver of inner steps: what it records, and when."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from metaopt.errors import UserError
from metaopt.evaluation.methods import BASELINES, Method, chain_methods, resolve
from metaopt.evaluation.rollout import Trajectory, rollout
from metaopt.learned.meta_optimizer import MetaOptimizer, MetaOptimizerSpec
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.optim import TeleportingOptimizer
from metaopt.symmetry.search import GradientAscent
from metaopt.tasks import Regression, RegressionFamily

torch.set_num_threads(1)  # the tensors are tiny; more threads only wait for one another

SEEDS = (3, 4, 5)
FAMILY = RegressionFamily(samples=5, input=6, hidden=4, output=3, dtype="float64")
RATE = 1e-3

PLAIN = ["gd", "sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam"]
TELEPORTING = [name for name in BASELINES if name.endswith("_tele")]


def run(name: str, steps: int, family: RegressionFamily = FAMILY) -> Trajectory:
    tasks = family.sample(SEEDS)
    return rollout(tasks, resolve(name).optimizer(tasks), steps)


def naive_descent(seed: int, rate: float, steps: int) -> tuple[list[float], list[float]]:
    """(losses, gradient norms) of gradient descent with hand-written derivatives, in numpy."""
    tasks = FAMILY.sample([seed])
    w1, w2 = (w.detach()[0].numpy().copy() for w in (tasks.W1, tasks.W2))
    x, y = tasks.x[0].numpy(), tasks.y[0].numpy()
    losses, norms = [], []
    for _ in range(steps + 1):
        z = w1 @ x
        h = np.where(z > 0, z, 0.1 * z)
        residual = w2 @ h - y
        d2 = residual @ h.T
        d1 = ((w2.T @ residual) * np.where(z > 0, 1.0, 0.1)) @ x.T
        losses.append(0.5 * float((residual**2).sum()))
        norms.append(float(np.sqrt((d1**2).sum() + (d2**2).sum())))
        w1, w2 = w1 - rate * d1, w2 - rate * d2
    return losses, norms


def test_losses_and_gradient_norms_equal_a_naive_computation_at_every_step() -> None:
    trajectory = run(f"gd@{RATE}", steps=6)
    for b, seed in enumerate(SEEDS):
        losses, norms = naive_descent(seed, RATE, steps=6)
        np.testing.assert_allclose(trajectory.losses[:, b].numpy(), losses, rtol=1e-10)
        np.testing.assert_allclose(trajectory.grad_norms[:, b].numpy(), norms, rtol=1e-10)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("name", chain_methods())
def test_records_step_zero_to_the_last_inclusive(name: str, steps: int) -> None:
    trajectory = run(name, steps)
    shape = (steps + 1, len(SEEDS))
    for tensor in (
        trajectory.losses,
        trajectory.grad_norms,
        trajectory.invariance_errors,
        trajectory.rejected,
    ):
        assert tensor.shape == shape
    for tensor in (trajectory.losses, trajectory.grad_norms, trajectory.invariance_errors):
        assert tensor.dtype == torch.float64
    assert trajectory.rejected.dtype == torch.bool
    assert trajectory.seconds_per_step > 0


@pytest.mark.parametrize("name", chain_methods())
def test_step_zero_is_the_start_and_the_last_is_where_the_tasks_stand(name: str) -> None:
    tasks = FAMILY.sample(SEEDS)
    trajectory = rollout(tasks, resolve(name).optimizer(tasks), 7)
    assert torch.equal(trajectory.losses[0], FAMILY.sample(SEEDS)().detach())
    assert torch.equal(trajectory.losses[-1], tasks().detach())
    assert not torch.equal(trajectory.losses[-1], trajectory.losses[0])


def test_a_longer_run_begins_with_the_shorter_one() -> None:
    short, long = run("adam", 3), run("adam", 8)
    assert torch.equal(long.losses[:4], short.losses)
    assert torch.equal(long.grad_norms[:4], short.grad_norms)


def count_evaluations(method: Method, steps: int) -> list[int]:
    """Evaluations of the tasks by the closure, for each step and the last record."""
    tasks = FAMILY.sample(SEEDS)
    optimizer = method.optimizer(tasks)
    counts = [0]
    tasks.register_forward_hook(lambda *_: counts.__setitem__(-1, counts[-1] + 1))
    optimizer.register_step_post_hook(lambda *_: counts.append(0))
    rollout(tasks, optimizer, steps)
    return counts


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_method_evaluates_the_tasks_once_a_step(name: str) -> None:
    assert count_evaluations(BASELINES[name], steps=4) == [1, 1, 1, 1, 1]


@pytest.mark.parametrize("name", [name for name in chain_methods() if name not in BASELINES])
def test_a_learned_method_evaluates_the_tasks_once_a_step(name: str) -> None:
    assert count_evaluations(resolve(name), steps=3) == [1, 1, 1, 1]


@pytest.mark.parametrize("name", TELEPORTING)
def test_the_invariance_error_stands_at_the_step_after_the_teleport_and_nowhere_else(
    name: str,
) -> None:
    trajectory = run(name, steps=8)
    finite = trajectory.invariance_errors.isfinite().all(dim=1)
    assert finite.tolist() == [t == 6 for t in range(9)]
    assert trajectory.invariance_errors.isnan().any(dim=1).tolist() == [t != 6 for t in range(9)]


def test_a_schedule_with_step_zero_shows_its_invariance_error_at_step_one() -> None:
    tasks = FAMILY.sample(SEEDS)
    optimizer = TeleportingOptimizer(
        torch.optim.SGD(tasks.parameters(), lr=RATE),
        tasks,
        schedule=(0, 2),
        search=GradientAscent(iterations=2, initial_step=0.01),
    )
    trajectory = rollout(tasks, optimizer, 4)
    finite = trajectory.invariance_errors.isfinite().all(dim=1)
    assert finite.tolist() == [False, True, False, True, False]
    assert torch.equal(trajectory.losses[0], FAMILY.sample(SEEDS)().detach())


@pytest.mark.parametrize("name", [*PLAIN, "lbfgs", "muon", "lstm_update"])
def test_what_does_not_teleport_has_no_invariance_error_and_rejects_nothing(name: str) -> None:
    trajectory = run(name, steps=7)
    assert trajectory.invariance_errors.isnan().all()
    assert not trajectory.rejected.any()


@pytest.mark.parametrize("name", ["lstm_update_tele", "lstm_lr_tele"])
def test_what_teleports_at_each_step_has_an_invariance_error_from_step_one_on(name: str) -> None:
    trajectory = run(name, steps=4)
    assert trajectory.invariance_errors[0].isnan().all()
    assert trajectory.invariance_errors[1:].isfinite().all()


def test_invariance_errors_are_left_out_on_request_and_nothing_else_changes() -> None:
    tasks = FAMILY.sample(SEEDS)
    without = rollout(tasks, resolve("gd_tele").optimizer(tasks), steps=7, measure_invariance=False)
    measured = run("gd_tele", 7)
    assert without.invariance_errors.isnan().all()
    assert torch.equal(without.losses, measured.losses)
    assert torch.equal(without.rejected, measured.rejected)


SAFE = ("levenberg_marquardt", "lbfgs_wolfe", "kfac")  # they look at the loss


@pytest.mark.parametrize("name", [n for n in chain_methods() if n in BASELINES and n not in SAFE])
def test_divergence_gives_non_finite_losses_and_raises_nothing(name: str) -> None:
    method = replace(BASELINES[name], rate=1e25)
    tasks = RegressionFamily(samples=5, input=6, hidden=4, output=3).sample(SEEDS)
    trajectory = rollout(tasks, method.optimizer(tasks), 8)
    assert trajectory.losses[0].isfinite().all()
    assert not trajectory.losses[-1].isfinite().any()
    if name in TELEPORTING:
        assert trajectory.rejected[6].all()  # there is nowhere to go from NaN


def test_progress_counts_the_steps() -> None:
    class Bar:
        n = 0

        def update(self) -> None:
            self.n += 1

    bar = Bar()
    tasks = FAMILY.sample(SEEDS)
    optimizer = resolve("gd").optimizer(tasks)
    rollout(tasks, optimizer, 5, advance=bar.update)
    assert bar.n == 5


def test_the_norm_of_a_task_is_its_own() -> None:
    """Scaling one tasks's target changes its gradient and no other's."""
    whole = FAMILY.sample(SEEDS)
    y = whole.y.clone()
    y[2] *= 10
    scaled = Regression([whole.W1.detach(), whole.W2.detach()], whole.x, y)
    norms = rollout(scaled, torch.optim.SGD(scaled.parameters(), lr=RATE), 1).grad_norms[0]
    before = run("gd", 1).grad_norms[0]
    assert torch.equal(norms[:2], before[:2])
    assert norms[2] != before[2]


def test_a_reverted_move_counts_as_none() -> None:
    tasks = RegressionFamily(4, 5, 4, 3).sample([1, 2])
    meta = MetaOptimizer(MetaOptimizerSpec(element="whitening", element_size=0.3, hold=1e-30))
    trajectory = rollout(tasks, LearnedOptimizer(tasks, meta), 2)
    assert trajectory.invariance_errors.isnan().all()
    assert not trajectory.rejected.any()


def test_a_rejected_move_counts_as_none() -> None:
    tasks = RegressionFamily(9, 4, 4, 3).sample([1, 2])  # more samples than inputs: inexact
    meta = MetaOptimizer(MetaOptimizerSpec(element="whitening", element_size=3.0, hold=0.0))
    trajectory = rollout(tasks, LearnedOptimizer(tasks, meta), 3)
    assert trajectory.rejected[1:].all()
    assert trajectory.invariance_errors.isnan().all()


def test_a_step_that_does_not_call_its_closure_is_refused():
    class Deaf(torch.optim.SGD):
        def step(self, closure=None):
            return None

    tasks = RegressionFamily(3, 3, 3, 3).sample([1])
    with pytest.raises(UserError, match="calls the closure, got Deaf"):
        rollout(tasks, Deaf(tasks.parameters(), lr=0.1), 2)
