"""Networks with kinks: how they are known, and steps with momentum across them."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from metaopt.evaluation.rollout import rollout
from metaopt.learned import trust_region
from metaopt.learned.forward_record import ForwardRecord
from metaopt.learned.kinks import MOMENTUM, RATE, has_kinks, is_kinked, with_momentum
from metaopt.learned.meta_optimizer import MetaOptimizer, MetaOptimizerSpec
from metaopt.learned.module_layout import layout_of
from metaopt.learned.module_pass import SeenModule
from metaopt.learned.observation import SeenLoss
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.learned.trust_region import (
    AFTER,
    COASTING,
    COASTING_NU,
    FARTHEST,
    Trust,
    judged,
)
from metaopt.output_loss import SQUARE
from metaopt.symmetry.activations import Elementwise, Identity, LeakyReLU
from metaopt.tasks import NetworkFamily

KINKED = (
    functional.relu, functional.leaky_relu, functional.relu6, functional.hardtanh, torch.abs,
    functional.hardswish, functional.rrelu, lambda z: z.clamp(min=0), lambda z: z.max(dim=0).values,
    lambda z: torch.maximum(z, -z), lambda z: functional.max_pool1d(z.view(1, 1, -1), 2),
    functional.selu, lambda z: functional.elu(z, 0.5), lambda z: z.min(), lambda z: z.topk(2)[0],
    lambda z: functional.adaptive_max_pool2d(z.view(1, 2, 2), 1), lambda z: z.sort().values[:2],
    lambda z: functional.prelu(z, torch.ones(1)), lambda z: functional.threshold(z, 0.1, 0.0),
)  # fmt: skip


class _MaxNorm(torch.autograd.Function):
    """A smooth function with a name like that of a kink."""

    @staticmethod
    def forward(ctx, z):
        return z.sin()

    @staticmethod
    def backward(ctx, g):
        return g


SMOOTH = (
    torch.tanh, functional.gelu, functional.silu, torch.sigmoid, functional.softplus,
    functional.elu, functional.celu, lambda z: z.exp().sum(), _MaxNorm.apply,
    lambda z: functional.layer_norm(z, (4,)), lambda z: z.softmax(dim=0),
)  # fmt: skip


@pytest.mark.parametrize("function", KINKED)
def test_kinks_are_seen(function):
    z = torch.randn(4, requires_grad=True)
    assert has_kinks(functional.softplus(function(torch.sin(z))).sum())


@pytest.mark.parametrize("function", SMOOTH)
def test_what_is_smooth_has_none(function):
    assert not has_kinks(function(torch.randn(4, requires_grad=True)))


def test_activations_of_a_chain():
    assert is_kinked(LeakyReLU(0.1))
    assert is_kinked(LeakyReLU(0.0))
    assert is_kinked(Elementwise("relu6", functional.relu6))
    assert not is_kinked(Identity())
    assert not is_kinked(Elementwise("gelu", functional.gelu))


@pytest.mark.parametrize(("activation", "kinked"), [(nn.ReLU, True), (nn.GELU, False)])
def test_a_module_has_them_where_its_operations_do(activation, kinked):
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), activation(), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    record = ForwardRecord((x,), {})
    names, parameters = zip(*model.named_parameters(), strict=True)
    assert SeenModule(model, layout_of(model, names)).passed(record, parameters).kinked() is kinked


def test_momentum_is_of_the_tasks_that_coast():
    step = torch.randn(2, 17)
    last = torch.randn_like(step)
    found = with_momentum(step, last, [False, True])
    torch.testing.assert_close(found[0], step[0])
    torch.testing.assert_close(found[1], RATE * step[1] + MOMENTUM * last[1])
    last[0, 0] = math.inf
    assert torch.equal(with_momentum(step, last, [False, True])[0], step[0])
    torch.testing.assert_close(with_momentum(step[1], last[1], [True]), found[1])


def after(reached, kinked=True, **fields):
    """The verdict where 1 was promised of a loss of 10, after a step of 0.01 of the weights."""
    told = Trust(5.0, 1e-4, 0.02, 0.01, 1.0, 10.0, 1.0, 0.0, math.inf)._replace(**fields)
    seen = SeenLoss(SQUARE, torch.tensor([reached], dtype=torch.float64))
    (found,) = judged([told], [reached], seen, None, (1.0, 0.3), lambda: kinked)
    return found


def test_a_task_coasts_where_a_short_step_came_to_nothing():
    found = after(9.95)
    assert (found.trust.coasting, found.trust.lowest) == (COASTING, 10)
    assert (found.trust.nu, found.trust.length) == (COASTING_NU, FARTHEST)
    assert not found.back
    assert after(10.5).back
    smooth, far, tiny = after(9.95, False), after(9.95, last=0.1), after(9.95, last=1e-4)
    for other in (after(9.5), smooth, far, tiny):
        assert other.trust.coasting == 0


@pytest.mark.parametrize("reached", [math.nan, math.inf, 1e6, 12.5])
def test_no_task_coasts_after_a_loss_that_is_far_higher(reached):
    found = after(reached)
    assert found.back
    assert found.trust.coasting == 0
    assert found.trust.length < 0.01
    assert found.trust.nu > 1e-4


def test_coasting_ends_after_its_steps_or_where_the_model_is_right():
    assert after(9.5, coasting=7.0, lowest=10.0).trust.coasting == 6
    for last in (after(9.5, coasting=1.0, lowest=10.0), after(9.05, coasting=7.0, lowest=10.0)):
        assert last.trust.coasting == 0
        assert (last.trust.nu, last.trust.length) == AFTER
    assert after(9.0, coasting=7.0, promised=1e-300, lowest=10.0).trust.coasting == 6  # no promise


def test_a_coasting_step_is_bounded_by_the_lowest_loss_and_a_shorter_one_follows():
    kept = {"coasting": 7.0, "lowest": 9.0, "last": 0.2, "length": FARTHEST}
    within, above = after(10.5, **kept), after(11.0, **kept)
    assert (within.back, above.back) == (False, True)
    assert (within.trust.length, above.trust.length) == (FARTHEST, 0.1)
    assert within.trust.lowest == above.trust.lowest == 9.0
    assert after(8.0, **kept | {"loss": 8.5}).trust.lowest == 8.5


def test_a_step_that_was_not_made_is_not_counted():
    assert after(10.0, coasting=7.0, lowest=10.0, promised=0.0).trust.coasting == 7


def test_another_batch_ends_it():
    found = after(9.5, coasting=7.0, lowest=10.0, loss=math.inf)
    assert found.trust.coasting == 0
    assert (found.trust.nu, found.trust.length) == (1.0, 0.3)


def test_noise_is_fitted_further_with_it(monkeypatch):
    """Where a trust region alone is stuck beside a long gradient."""
    family = NetworkFamily(
        6, 8, 1, depth=2, samples=96, activation="relu", teacher=0.0, noise=1.0, dtype="float64"
    )
    lowest = []
    for near in ((1.0, 0.0), trust_region.NEAR):
        monkeypatch.setattr(trust_region, "NEAR", near)
        tasks = family.sample(range(6))
        meta = MetaOptimizer(MetaOptimizerSpec(update="whitened", element="none"))
        losses = rollout(tasks, LearnedOptimizer(tasks, meta), 90).losses
        assert (losses <= losses[0]).all()
        lowest.append(float((losses[-1] / losses[0]).log().mean()))
    assert lowest[1] < lowest[0] - 0.1


def test_a_state_that_was_saved_without_it_loads():
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(6, 3)

    def stepped(optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        return [p.detach().clone() for p in model.parameters()]

    optimizer = LearnedOptimizer(model, "lstm_whitened")
    weights, state = stepped(optimizer, 3), optimizer.state_dict()
    saved = [key for entry in state["state"].values() for key in entry]
    assert "m1_coasting" in saved
    state = {
        **state,
        "state": {
            key: {name: value for name, value in entry.items() if name != "m1_coasting"}
            for key, entry in state["state"].items()
        },
    }
    after = stepped(optimizer, 2)
    with torch.no_grad():
        for p, w in zip(model.parameters(), weights, strict=True):
            p.copy_(w)
    other = LearnedOptimizer(model, "lstm_whitened")
    other.load_state_dict(state)
    for a, b in zip(stepped(other, 2), after, strict=True):
        torch.testing.assert_close(a, b)


NOISE = NetworkFamily(
    6, 8, 1, depth=2, samples=96, activation="relu", teacher=0.0, noise=1.0, dtype="float64"
)


def untrained(tasks):
    spec = MetaOptimizerSpec(update="whitened", element="none", cg_iterations=1)
    return LearnedOptimizer(tasks, MetaOptimizer(spec))


def test_tasks_that_coast_together_are_stepped_as_each_alone():
    together = NOISE.sample([0, 3])
    losses = rollout(together, optimizer := untrained(together), 50).losses
    assert optimizer.learned_state["update"][4][0].any(), "one of them coasts"
    for place, seed in enumerate((0, 3)):
        alone = NOISE.sample([seed])
        own = rollout(alone, untrained(alone), 50).losses
        torch.testing.assert_close(losses[:, place], own[:, 0], rtol=1e-3, atol=0)


def test_a_layer_without_a_gradient_has_no_momentum():
    tasks = NOISE.sample([0])
    optimizer = untrained(tasks)
    rollout(tasks, optimizer, 30)
    coasting = optimizer.learned_state["update"][4]
    coasting[0], coasting[1] = 30.0, math.inf
    first = next(iter(tasks.parameters()))
    optimizer.zero_grad()
    tasks().sum().backward()
    first.grad = None
    before = first.detach().clone()
    optimizer.step()
    assert torch.equal(first, before)
    last = optimizer.learned_state["update"][2][0][: first.numel()]
    assert not last.any()
