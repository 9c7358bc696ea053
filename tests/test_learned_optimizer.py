"""The drop-in optimizer against its differentiable form, and as an ordinary torch optimizer."""

import higher
import pytest
import torch
from torch import Tensor, nn

from metaopt import LearnedOptimizer
from metaopt.learned.differentiable import DifferentiableLearnedOptimizer, differentiable
from metaopt.learned.meta_optimizer import MetaOptimizer, MetaOptimizerSpec
from metaopt.tasks import Regression, RegressionFamily
from metaopt.training.meta_loss import LogMean
from metaopt.training.unroll import unroll

METHODS = {
    "LSTM(update)": {"element": "none"},
    "LSTM(update,tele)": {},
    "LSTM(lr,tele)": {"update": "step_size"},
    "LSTM(update,tele), eq. 79": {"action": "pre_activation", "damping": 1e-3},
    "flat LSTM(lr,tele)": {"update": "flat_step_size", "element": "flat"},
}
WIDTHS = (3, 4, 5)  # input, hidden, output
SEEDS = (3, 4, 5)


def build(seed: int = 0, **fields) -> MetaOptimizer:
    """A meta-optimizer that teleports from the start: m2's head is not zero."""
    fields = {"hidden": 5, "flat_widths": WIDTHS, "bound": 1.0, **fields}
    meta = MetaOptimizer(MetaOptimizerSpec(**fields), seed)
    if meta.element is not None:
        generator = torch.Generator().manual_seed(seed + 1)
        nn.init.normal_(meta.element.lstm.head_weight, std=0.3, generator=generator)
    return meta


def make_tasks(dtype: str = "float64", seeds=SEEDS) -> Regression:
    return RegressionFamily(2, *WIDTHS, dtype=dtype).sample(seeds)


def train(tasks: Regression, optimizer: LearnedOptimizer, steps: int) -> Tensor:
    """The ordinary loop; losses before each step and after the last, (steps + 1, B)."""
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = tasks()
        losses.append(loss.detach())
        loss.sum().backward()
        optimizer.step()
    return torch.stack([*losses, tasks().detach()])


def weights(tasks: Regression) -> list[Tensor]:
    return [p.detach().clone() for p in tasks.parameters()]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-6)])
@pytest.mark.parametrize("method", METHODS)
def test_drop_in_and_differentiable_form_walk_the_same_trajectory(method, dtype, tolerance):
    meta = build(**METHODS[method])
    tasks = make_tasks(dtype)
    start = weights(tasks)
    with differentiable(tasks, LearnedOptimizer(tasks, meta)) as run:
        losses_of_form = [run.losses()]
        for _ in range(30):
            run.step(losses_of_form[-1])
            losses_of_form.append(run.losses())
        final = [p.detach() for p in run.network.fast_params]
    torch.testing.assert_close(weights(tasks), start, rtol=0, atol=0)  # copied, not stepped
    losses = train(tasks, LearnedOptimizer(tasks, meta), 30)
    assert losses.isfinite().all()
    torch.testing.assert_close(torch.stack(losses_of_form).detach(), losses, rtol=tolerance, atol=0)
    torch.testing.assert_close(final, weights(tasks), rtol=tolerance, atol=tolerance)


def test_the_differentiable_form_goes_on_from_the_optimizer_s_present_state_and_leaves_it_alone():
    tasks, whole = make_tasks(), make_tasks()
    optimizer = LearnedOptimizer(tasks, build())
    expected = train(whole, LearnedOptimizer(whole, build()), 10)
    train(tasks, optimizer, 5)
    kept = [t.clone() for tensors in optimizer.learned_state.values() for t in tensors]
    (window,) = unroll(tasks, optimizer, 5, 5, LogMean(1e-6))
    torch.testing.assert_close(window.losses, expected[6:], rtol=1e-12, atol=0)
    now = [t for tensors in optimizer.learned_state.values() for t in tensors]
    torch.testing.assert_close(now, kept, rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_closure_and_a_plain_backward_agree(method):
    plain, closed = make_tasks(), make_tasks()
    losses = train(plain, LearnedOptimizer(plain, build(**METHODS[method])), 10)
    optimizer = LearnedOptimizer(closed, build(**METHODS[method]))

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = closed().sum()
        total.backward()
        return total

    returned = torch.stack([optimizer.step(closure).detach() for _ in range(10)])
    torch.testing.assert_close(returned, losses[:-1].sum(dim=1), rtol=0, atol=0)
    torch.testing.assert_close(weights(closed), weights(plain), rtol=0, atol=0)
    assert optimizer.step() is None


@pytest.mark.parametrize("method", METHODS)
def test_ten_steps_saved_and_loaded_and_ten_more_equal_twenty(method, tmp_path):
    whole, first, second = make_tasks(), make_tasks(), make_tasks()
    train(whole, LearnedOptimizer(whole, build(**METHODS[method])), 20)
    optimizer = LearnedOptimizer(first, build(**METHODS[method]))
    train(first, optimizer, 10)
    torch.save({"w": first.state_dict(), "o": optimizer.state_dict()}, tmp_path / "saved.pt")
    saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    second.load_state_dict(saved["w"])
    resumed = LearnedOptimizer(second, build(**METHODS[method]))
    resumed.load_state_dict(saved["o"])
    train(second, resumed, 10)
    torch.testing.assert_close(weights(second), weights(whole), rtol=0, atol=0)
    forgetful = LearnedOptimizer(first, build(**METHODS[method]))  # the state does matter
    train(first, forgetful, 10)
    assert not torch.equal(first.W1, whole.W1)


@pytest.mark.parametrize("method", METHODS)
def test_tasks_of_a_batch_do_not_know_of_each_other(method):
    together = make_tasks()
    losses = train(together, LearnedOptimizer(together, build(**METHODS[method])), 2)
    for index, seed in enumerate(SEEDS):
        alone = make_tasks(seeds=[seed])
        own = train(alone, LearnedOptimizer(alone, build(**METHODS[method])), 2)
        # Whitening enlarges the directions that float32 rounds away: equal to some digits only.
        torch.testing.assert_close(own[:, 0], losses[:, index], rtol=1e-2, atol=0)


def test_a_parameter_without_gradient_counts_as_one_with_a_zero_gradient():
    ends = []
    for absent in (True, False):
        tasks = make_tasks()
        optimizer = LearnedOptimizer(tasks, build())
        tasks().sum().backward()
        tasks.W2.grad = None if absent else torch.zeros_like(tasks.W2)
        optimizer.step()
        ends.append(weights(tasks))
    torch.testing.assert_close(*ends, rtol=0, atol=0)


def test_an_update_leaves_a_parameter_without_gradient_whatever_m1_proposes():
    tasks = make_tasks()
    optimizer = LearnedOptimizer(tasks, build(element="none", heads=("plain",)))
    tasks().sum().backward()
    tasks.W2.grad = None
    before = weights(tasks)
    optimizer.step()
    assert [torch.equal(*pair) for pair in zip(weights(tasks), before, strict=True)] == [
        False,
        True,
    ]


def test_a_teleportation_keeps_the_weights_before_it_of_a_parameter_without_gradient():
    tasks = make_tasks()
    optimizer = LearnedOptimizer(tasks, build())
    tasks().sum().backward()
    tasks.W1.grad = None
    before = weights(tasks)
    optimizer.step()
    torch.testing.assert_close(optimizer.teleportation.before[0], before[0], rtol=0, atol=0)
    assert not torch.equal(tasks.W1, before[0])
    assert optimizer.teleportation.invariance_error().max() < 1e-6


def test_steps_give_meta_parameters_no_gradient_and_leave_them_alone():
    meta = build()
    before = [p.detach().clone() for p in meta.parameters()]
    tasks = make_tasks()
    optimizer = LearnedOptimizer(tasks, meta)
    train(tasks, optimizer, 3)
    assert all(p.requires_grad and p.grad is None for p in meta.parameters())
    torch.testing.assert_close([p.detach() for p in meta.parameters()], before, rtol=0, atol=0)
    held = [*tasks.parameters(), *(t for s in optimizer.learned_state.values() for t in s)]
    assert all(tensor.grad_fn is None for tensor in held)  # no graph grows from step to step


def test_each_step_shows_its_teleportation():
    tasks = make_tasks()
    optimizer = LearnedOptimizer(tasks, build())
    assert optimizer.teleportation is None
    train(tasks, optimizer, 2)
    assert optimizer.teleportation.invariance_error().shape == (len(SEEDS),)
    move = optimizer.teleportation
    torch.testing.assert_close(list(move.after), weights(tasks), rtol=0, atol=0)
    assert not any(map(torch.equal, move.before, tasks.parameters()))


def test_higher_finds_the_differentiable_form_by_exact_type():
    class Subclass(LearnedOptimizer):
        pass

    tasks = make_tasks()
    with higher.innerloop_ctx(tasks, LearnedOptimizer(tasks, build())) as (_, form):
        assert type(form) is DifferentiableLearnedOptimizer
    with (
        pytest.raises(ValueError, match="not supported by higher"),
        higher.innerloop_ctx(tasks, Subclass(tasks, build())),
    ):
        pass


def test_the_first_order_form_refuses_arguments_it_would_drop():
    tasks = make_tasks()
    with (
        differentiable(tasks, LearnedOptimizer(tasks, build())) as run,
        pytest.raises(TypeError, match="grad_callback"),
    ):
        run.optimizer.step(run.losses().sum(), grad_callback=lambda g: g)


def test_the_differentiable_form_tracks_no_graph_when_asked_not_to():
    tasks = make_tasks()
    optimizer = LearnedOptimizer(tasks, build())
    with higher.innerloop_ctx(tasks, optimizer, track_higher_grads=False) as (network, form):
        form.step(network().sum())
        assert all(p.is_leaf for p in network.fast_params)
        stepped = network().detach()
    torch.testing.assert_close(stepped, train(tasks, optimizer, 1)[-1], rtol=1e-12, atol=0)


def with_and_without_m2(**fields) -> tuple[MetaOptimizer, MetaOptimizer]:
    """LSTM(update) and LSTM(update,tele) with the same m1; m2 as it starts, with a zero head."""
    spec = {"hidden": 6, **fields}
    alone = MetaOptimizer(MetaOptimizerSpec(element="none", **spec), 0)
    both = MetaOptimizer(MetaOptimizerSpec(**spec), 1)
    both.update.load_state_dict(alone.update.state_dict())
    return alone, both


ACTIONS = [{"action": "post_activation"}, {"action": "pre_activation", "damping": 1e-4}]
SHAPES = [(4, 4, 4, 4), (7, 3, 5, 2)]


@pytest.mark.parametrize("action", ACTIONS, ids=lambda a: a["action"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_with_a_zero_head_of_m2_drop_in_equals_lstm_update_bit_for_bit(dtype, shape, action):
    ends = []
    for meta in with_and_without_m2(**action):
        model = RegressionFamily(*shape, dtype=dtype).sample([5, 6])
        optimizer = LearnedOptimizer(model, meta)
        for _ in range(20):
            optimizer.zero_grad()
            model().sum().backward()
            optimizer.step()
        ends.append([p.detach() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert not torch.equal(ends[0][0], RegressionFamily(*shape, dtype=dtype).sample([5, 6]).W1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_with_a_zero_head_of_m2_the_differentiable_form_equals_lstm_update_bit_for_bit(dtype):
    losses = []
    for meta in with_and_without_m2():
        model = RegressionFamily(7, 3, 5, 2, dtype=dtype).sample([5, 6])
        windows = unroll(model, LearnedOptimizer(model, meta), 20, 10, LogMean(1e-6))
        losses.append(torch.cat([window.losses for window in windows]))
    assert losses[0].shape == (20, 2)
    assert torch.equal(*losses)
