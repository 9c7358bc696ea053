"""Tasks of any module: stacked copies against the copies one by one, and under ``higher``."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from own_tasks import (
    TOGETHER,
    Adversarial,
    Attention,
    Dropped,
    Images,
    PlainRegression,
    Recurrent,
    Tokens,
    Widths,
)
from test_unroll import float64_networks  # noqa: F401
from torch import nn

from metaopt.errors import UserError
from metaopt.evaluation.rollout import rollout
from metaopt.learned.differentiable import Unroll
from metaopt.learned.meta_optimizer import MetaOptimizer, MetaOptimizerSpec
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.tasks import FAMILIES, SingleTask, Task, check_task, stacked
from metaopt.tasks.stream import BatchStream
from metaopt.training import estimators
from metaopt.training.meta_loss import META_LOSSES
from metaopt.training.particles import OneByOne
from metaopt.training.spec import TrainingSpec
from metaopt.training.trainer import check_fit
from metaopt.training.unroll import unroll

SEEDS = (3, 1, 8)
STEPS = (0, 1, 4, 2)


def layerwise(seed: int = 0) -> MetaOptimizer:
    meta = MetaOptimizer(MetaOptimizerSpec(update="layerwise", element="none"), seed)
    with torch.no_grad():  # the head is zero at first, and an m1 that sees nothing shows nothing
        for parameter in meta.parameters():
            parameter += 0.1 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(seed)
            )
    return meta


def gradients(network: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in network.named_parameters()
    }


@pytest.mark.parametrize("kind", TOGETHER)
def test_copies_together_are_the_copies_one_by_one(kind):
    together = stacked(kind(), SEEDS)
    singles = [SingleTask(kind(), seed) for seed in SEEDS]
    for step in STEPS:
        for tasks in (together, *singles):
            tasks.zero_grad()
            tasks(step).sum().backward()
        expected = torch.cat([single(step) for single in singles])
        torch.testing.assert_close(together(step), expected, rtol=0, atol=1e-12)
        for name, gradient in gradients(together).items():
            own = [
                gradients(single.network)[name.removeprefix("network/").replace("/", ".")]
                for single in singles
            ]
            torch.testing.assert_close(gradient, torch.stack(own), rtol=1e-10, atol=1e-12)
    assert together.together
    state = dict(singles[1].network.named_buffers())
    for name, value in state.items():
        kept = getattr(together, f"network/{name.replace('.', '/')}")[1]
        torch.testing.assert_close(kept, value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [*TOGETHER, Dropped])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_held_out_numbers_are_those_of_the_copies_in_evaluation_mode(kind, split):
    together = stacked(kind(), SEEDS)
    for step in range(3):
        together(step)  # moves the statistics of batch norm
    before = {name: value.clone() for name, value in together.named_buffers()}
    found = together.measure(split, 2)
    for index, seed in enumerate(SEEDS):
        task = kind()
        network = task.model(seed)
        for name, value in network.named_buffers():
            value.copy_(before[f"network/{name.replace('.', '/')}"][index])
        network.eval()
        batches = [b for b, _ in zip(task.batches(seed, split), range(2), strict=False)]
        expected = torch.stack([task.loss(network, batch) for batch in batches]).mean()
        torch.testing.assert_close(found["loss"][index], expected, rtol=1e-12, atol=1e-12)
    for name, value in together.named_buffers():
        assert torch.equal(value, before[name])
    assert ("accuracy" in found) == issubclass(kind, Images)


def test_metrics_are_means_over_batches():
    single = SingleTask(Images(), 4)
    task, network = single.task, copy.deepcopy(single.network).eval()
    batches = [b for b, _ in zip(task.batches(4, "test"), range(5), strict=False)]
    expected = torch.stack([task.metrics(network, batch)["accuracy"] for batch in batches]).mean()
    assert single.measure("test", 5)["accuracy"].item() == pytest.approx(expected.item())
    assert single.network.training


def test_each_copy_draws_its_own_masks_and_a_step_draws_them_again():
    task = Dropped()
    same = Dropped.batches(task, 5, "train")
    batch = next(iter(same))

    class OneBatch(Dropped):
        def model(self, seed):
            return super().model(0)

        def batches(self, seed, split):
            return [batch]

    together = stacked(OneBatch(), SEEDS)
    first = together(0)
    assert len(set(first.tolist())) == len(SEEDS)
    assert torch.equal(together(0), first)
    assert not torch.equal(together(1), first)
    single = SingleTask(OneBatch(), 3)
    assert torch.equal(single(0), single(0))
    state = torch.get_rng_state()
    together(2), single(2)
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_that_are_tied_stay_so():
    together = stacked(Tokens(), SEEDS)
    names = [name for name, _ in together.named_parameters()]
    assert names == ["network/embedding/weight", "network/inner/weight", "network/inner/bias"]


def test_a_module_that_vmap_cannot_run_runs_one_by_one_and_says_so():
    together = stacked(Recurrent(), SEEDS)
    with pytest.warns(UserWarning, match="Recurrent runs copy by copy, as torch.vmap cannot"):
        found = together(0)
    expected = torch.cat([SingleTask(Recurrent(), seed)(0) for seed in SEEDS])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    together(1)  # says nothing more
    assert together.together is False


def test_batches_of_unlike_shapes_run_one_by_one():
    class Ragged(Tokens):
        def batches(self, seed, split):
            yield from ((a[:seed], b[:seed], c[:seed]) for a, b, c in super().batches(seed, split))

    together = stacked(Ragged(), SEEDS)
    with pytest.warns(UserWarning, match="differ in shape"):
        found = together(0)
    expected = torch.cat([SingleTask(Ragged(), seed)(0) for seed in SEEDS])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_parameters_of_unlike_shapes_are_refused():
    class Sizes(Tokens):
        def model(self, seed):
            return nn.Linear(seed, 2)

    with pytest.raises(UserError, match="got another shape of weight for another seed: make a"):
        stacked(Sizes(), SEEDS)


def test_a_stream_starts_again_at_its_end_and_for_an_earlier_step():
    stream = BatchStream(Attention(), 2, "train")
    seen = [stream.at(step)[0] for step in (0, 1, 2, 3, 4)]
    assert torch.equal(seen[0], seen[3])
    assert torch.equal(seen[1], seen[4])
    assert torch.equal(stream.at(2)[0], seen[2])
    for other in (copy.deepcopy(stream), pickle.loads(pickle.dumps(stream))):
        assert torch.equal(other.at(1)[0], seen[1])


@pytest.mark.parametrize("kind", TOGETHER)
def test_a_learned_optimizer_steps_copies_together_as_it_steps_the_module(kind):
    meta = layerwise()
    together = stacked(kind(), SEEDS)
    losses = rollout(together, LearnedOptimizer(together, meta), 6).losses
    for index, seed in enumerate(SEEDS):
        single = SingleTask(kind(), seed)
        own = rollout(single, LearnedOptimizer(single.network, meta), 6).losses
        torch.testing.assert_close(losses[:, index], own[:, 0], rtol=1e-5, atol=1e-7)
    assert not torch.allclose(losses[0], losses[-1])


def test_a_single_task_under_adam_is_a_plain_loop():
    single = SingleTask(Images(), 5)
    run = rollout(single, torch.optim.Adam(single.parameters(), lr=0.01), 7)
    task, network = Images(), Images().model(5)
    optimizer, batches = torch.optim.Adam(network.parameters(), lr=0.01), task.batches(5, "train")
    for step, batch in zip(range(7), batches, strict=False):
        optimizer.zero_grad()
        loss = task.loss(network, batch)
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in network.parameters()])
        assert run.losses[step, 0].item() == loss.item()
        assert run.grad_norms[step, 0].item() == pytest.approx(norm.item())
        optimizer.step()


def windows(tasks, meta, recompute=0):
    optimizer = LearnedOptimizer(tasks, meta)
    return list(unroll(tasks, optimizer, 6, 3, META_LOSSES["sum"](), True, recompute))


@pytest.mark.usefixtures("float64_networks")
def test_the_generic_form_has_the_losses_and_meta_gradients_of_the_hand_batched_one():
    spec = MetaOptimizerSpec(element="none", heads=("plain",), hidden=4)
    meta, task = MetaOptimizer(spec, 1).double(), PlainRegression()
    for parameter in meta.parameters():
        nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(2))
    found, expected = windows(stacked(task, SEEDS), meta), windows(task.family.sample(SEEDS), meta)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own.losses, other.losses, rtol=1e-10, atol=0)
        for gradient, hand in zip(own.gradients, other.gradients, strict=True):
            scale = float(hand.abs().max())
            torch.testing.assert_close(gradient, hand, rtol=1e-10, atol=1e-10 * scale)


@pytest.mark.parametrize("kind", [Images, Dropped, Attention])
def test_a_window_made_again_draws_the_same_batches_and_masks(kind):
    meta = layerwise()
    first, second = stacked(kind(), SEEDS), stacked(kind(), SEEDS)
    for own, other in zip(windows(first, meta, 2), windows(second, meta), strict=True):
        assert torch.equal(own.losses, other.losses)
        for gradient, expected in zip(own.gradients, other.gradients, strict=True):
            scale = max(float(expected.abs().max()), 1e-6)
            torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4 * scale)


def test_statistics_of_batch_norm_are_updated_once_where_a_window_is_made_again(monkeypatch):
    ends = []
    real = Unroll.truncate

    def truncate(self):
        real(self)
        ends.append(self.network)

    monkeypatch.setattr(Unroll, "truncate", truncate)
    for recompute in (0, 2):
        windows(stacked(Images(), SEEDS), layerwise(), recompute)
    means = [network.get_buffer("network/1/running_mean") for network in (ends[1], ends[-1])]
    assert means[0].any()
    counts = [
        network.get_buffer("network/1/num_batches_tracked") for network in (ends[1], ends[-1])
    ]
    torch.testing.assert_close(*counts)
    torch.testing.assert_close(*means)


@pytest.mark.parametrize("kind", TOGETHER)
def test_windows_of_copies_have_the_summed_meta_gradient_of_the_copies(kind):
    meta = layerwise()
    whole = windows(stacked(kind(), SEEDS), meta)
    alone = [windows(stacked(kind(), [seed]), meta) for seed in SEEDS]
    for number, window in enumerate(whole):
        losses = torch.cat([own[number].losses for own in alone], dim=1)
        torch.testing.assert_close(window.losses, losses, rtol=1e-6, atol=1e-9)
        for place, gradient in enumerate(window.gradients):
            own = torch.stack([own[number].gradients[place] for own in alone]).mean(dim=0)
            scale = max(float(own.abs().max()), 1e-3)
            torch.testing.assert_close(gradient, own, rtol=1e-3, atol=1e-3 * scale)


@pytest.mark.parametrize("together", [True, False])
def test_the_meta_loss_of_an_evolution_strategy_may_be_held_out(together, monkeypatch):
    """It is of the weights after each window."""
    meta = MetaOptimizer(MetaOptimizerSpec(update="tensorwise", element="none", hidden=4), 0)
    if not together:
        monkeypatch.setattr(estimators, "particles", lambda p, o, n: OneByOne(p, o.meta, n))
    estimator = TrainingSpec(estimator="es", pes_sigma=1e-30, pes_held_out=2).gradient_estimator
    tasks = stacked(Images(), SEEDS)
    generator = torch.Generator().manual_seed(0)
    found = list(
        estimator.windows(
            tasks, LearnedOptimizer(tasks, meta), 5, 3, META_LOSSES["log"](), generator
        )
    )
    stepped = stacked(Images(), SEEDS)
    optimizer = LearnedOptimizer(stepped, meta)
    for window, (start, count) in zip(found, ((0, 3), (3, 2)), strict=True):
        rollout(stepped, optimizer, count, measure_invariance=False, first_step=start)
        expected = stepped.measure("validation", 2)["loss"]
        torch.testing.assert_close(window.losses, expected.repeat(2).unsqueeze(0))
        assert window.meta_loss.item() == pytest.approx(expected.log().mean().item())


def test_a_held_out_meta_loss_needs_a_validation_split():
    spec = TrainingSpec(problems="minibatches", estimator="pes", pes_held_out=1)
    with pytest.raises(UserError, match="expected pes_held_out=0 for problems='minibatches'"):
        check_fit(MetaOptimizerSpec(update="tensorwise", element="none"), spec)
    tasks = FAMILIES["width_8"].sample(SEEDS)
    windows = spec.gradient_estimator.windows(
        tasks, LearnedOptimizer(tasks, layerwise()), 2, 1, META_LOSSES["log"](), torch.Generator()
    )
    with pytest.raises(UserError, match="expected pes_held_out=0 for tasks without a validation"):
        next(windows)


def test_a_parameter_without_gradient_stays_where_it_is_under_higher():
    tasks = stacked(Adversarial(), SEEDS)
    names = [name for name, _ in tasks.named_parameters()]
    assert not any("fixed" in name for name in names)
    before = [p.detach().clone() for p in tasks.parameters()]
    rollout(tasks, LearnedOptimizer(tasks, layerwise()), 3)
    moved = [not torch.equal(a, b) for a, b in zip(before, tasks.parameters(), strict=True)]
    assert moved == ["used" in name for name in names]
    assert all(window.losses.isfinite().all() for window in windows(tasks, layerwise()))


def test_a_family_may_mix_modules():
    family = Widths()
    assert {type(family.sample(seed)) for seed in range(4)} == {Images, Tokens}


@pytest.mark.parametrize("kind", TOGETHER)
def test_tasks_in_order_pass_the_check(kind):
    check_task(kind(), 7)


def test_what_is_no_task_is_refused():
    with pytest.raises(UserError, match=r"expected a metaopt.tasks.Task, got 3: derive"):
        check_task(3, 7)
    with pytest.raises(UserError, match="expected at least one problem seed"):
        stacked(Images(), [])
    with pytest.raises(TypeError, match="abstract"):
        Task()


class Moving(Images):
    """A running mean that is assigned anew, and parameters with the names of a batch's own."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.x = nn.Parameter(torch.randn(20, 3, dtype=torch.float64))
            self.register_buffer("seeds", torch.zeros(20, dtype=torch.float64))

        def forward(self, images):
            flat = images.flatten(1)[:, :20]
            if self.training:
                self.seeds = 0.9 * self.seeds + 0.1 * flat.mean(dim=0).detach()
            return (flat - self.seeds) @ self.x

    def model(self, seed):
        torch.manual_seed(seed)
        return self.Network()


def test_a_buffer_that_is_assigned_anew_is_kept():
    together, singles = stacked(Moving(), SEEDS), [SingleTask(Moving(), seed) for seed in SEEDS]
    for step in range(4):
        expected = torch.cat([single(step) for single in singles])
        torch.testing.assert_close(together(step), expected, rtol=0, atol=1e-12)
    kept = together.get_buffer("network/seeds")
    torch.testing.assert_close(kept, torch.stack([s.network.seeds for s in singles]))
    assert kept.any()


def test_a_window_made_again_finds_the_buffers_as_they_were():
    meta = layerwise()
    first, second = stacked(Moving(), SEEDS), stacked(Moving(), SEEDS)
    for own, other in zip(windows(first, meta, 2), windows(second, meta), strict=True):
        for gradient, expected in zip(own.gradients, other.gradients, strict=True):
            scale = max(float(expected.abs().max()), 1e-6)
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5 * scale)


def test_metrics_that_look_at_values_run_one_by_one_beside_a_loss_that_does_not():
    class Looking(Images):
        def metrics(self, model, batch):
            return {"mean": model(batch["x"]).mean().item()}

    together = stacked(Looking(), SEEDS)
    together(0)
    with pytest.warns(UserWarning, match="runs copy by copy"):
        found = together.measure("test", 2)
    assert found["mean"].shape == (3,)
    assert together.together
