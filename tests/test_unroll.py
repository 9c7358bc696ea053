"""``unroll`` through ``higher`` against a hand-written loop, finite differences, and formulas."""

import gc
import math
import weakref
from importlib import import_module

import pytest
import torch
from torch import Tensor, nn

from metaopt import LearnedOptimizer, UserError
from metaopt.learned.meta_optimizer import MetaOptimizer, MetaOptimizerSpec, StepInput
from metaopt.learned.observation import Observation
from metaopt.symmetry import LayerInput
from metaopt.tasks import Regression, RegressionFamily
from metaopt.training.meta_loss import META_LOSSES, LogMean, PaperSum
from metaopt.training.unroll import unroll

METHODS = {
    "LSTM(update)": {"element": "none"},
    "LSTM(update,tele)": {},
    "LSTM(lr,tele)": {"update": "step_size"},
    "LSTM(update,tele), eq. 79": {"action": "pre_activation", "damping": 1e-3},
}
REVERTING = "LSTM(update,tele), some moves reverted"
INEXACT = {"exponential": "first_order", "hold": 8e-3}  # (I - T)(I + T) is not I
ALL = {**METHODS, REVERTING: INEXACT}
LOSSES = {"log": LogMean(1e-6), "sum": PaperSum()}


def build(method: str) -> MetaOptimizer:
    """A meta-optimizer that teleports from the start: m2's head is not zero."""
    meta = MetaOptimizer(MetaOptimizerSpec(**{"hidden": 5, "bound": 2.0, **ALL[method]}), 0)
    if meta.element is not None:
        generator = torch.Generator().manual_seed(1)
        nn.init.normal_(meta.element.lstm.head_weight, std=0.3, generator=generator)
    return meta


def make_problem() -> Regression:
    return RegressionFamily(2, 3, 4, 5, dtype="float64").sample([1, 2, 3])


@pytest.fixture
def float64_networks(monkeypatch):
    """Networks see float64 (the package gives them float32), so that 1e-10 can be asked for."""

    def of(cls, chain, parameters, gradients, x, second_order=False, *losses):
        parameters, gradients = ([t.double() for t in g] for g in (parameters, gradients))
        seen = cls(chain, parameters, gradients, x.detach().double())
        return seen if second_order else seen.numbers

    monkeypatch.setattr(Observation, "of", classmethod(of))


def losses_at(problem: Regression, w: list[Tensor]) -> Tensor:
    hidden = w[0] @ problem.x
    hidden = torch.where(hidden > 0, hidden, 0.1 * hidden)
    return 0.5 * ((problem.y - w[1] @ hidden) ** 2).sum(dim=(-2, -1))


def by_hand(problem, meta, steps, window, meta_loss, second_order):
    """Algorithm 1 with plain tensors: (losses, meta-gradients) of each window."""
    x = LayerInput(problem.x)
    w = [p.detach().clone() for p in problem.parameters()]
    state = meta.init_state(problem.chain, w)
    for start in range(0, steps, window):
        w = [t.detach().requires_grad_() for t in w]
        state = {name: [t.detach() for t in tensors] for name, tensors in state.items()}
        after = []
        for _ in range(min(window, steps - start)):
            total = losses_at(problem, w).sum()
            gradients = torch.autograd.grad(total, w, retain_graph=True, create_graph=second_order)
            now = StepInput(w, gradients, second_order=second_order)
            w, state, _ = meta.advance(problem.chain, x, now, state)
            after.append(losses_at(problem, w))
        value = meta_loss(torch.stack(after))
        found = torch.autograd.grad(value, list(meta.parameters()))
        yield value.detach(), list(found), torch.stack(after).detach()


def check_against_loop(
    meta: MetaOptimizer, loss: str, tolerance: float, second_order: bool = True
) -> None:
    problem = make_problem()
    optimizer = LearnedOptimizer(problem, meta)
    windows = list(unroll(problem, optimizer, 11, 4, LOSSES[loss], second_order))
    expected = list(by_hand(make_problem(), meta, 11, 4, LOSSES[loss], second_order))
    assert [len(window.losses) for window in windows] == [4, 4, 3]
    for window, (value, gradients, losses) in zip(windows, expected, strict=True):
        torch.testing.assert_close(window.meta_loss, value, rtol=tolerance, atol=0)
        torch.testing.assert_close(window.losses, losses, rtol=tolerance, atol=0)
        assert all(g.any() for g in gradients)
        for own, by_loop in zip(window.gradients, gradients, strict=True):
            scale = by_loop.abs().max().item()
            torch.testing.assert_close(own, by_loop, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.usefixtures("float64_networks")
@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("method", METHODS)
def test_losses_and_meta_gradients_equal_those_of_a_hand_written_loop(method, loss, second_order):
    check_against_loop(build(method).double(), loss, 1e-10, second_order)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_in_float32_networks(method):
    check_against_loop(build(method), "log", tolerance=1e-5)


def largest_entries(gradients: list[Tensor]) -> list[tuple[int, int]]:
    """For each meta-parameter, the entry whose gradient is largest."""
    return [(i, int(g.abs().argmax())) for i, g in enumerate(gradients)]


def check_finite_differences(
    meta: MetaOptimizer, steps: int, second_order: bool, eps: float = 1e-5
) -> None:
    def run():
        problem = make_problem()
        optimizer = LearnedOptimizer(problem, meta)
        (window,) = unroll(problem, optimizer, steps, steps, LogMean(1e-6), second_order)
        return window

    gradients = run().gradients
    for index, entry in largest_entries(gradients):
        parameter = list(meta.parameters())[index].data.view(-1)
        kept, values = parameter[entry].item(), []
        for shift in (eps, -eps):
            parameter[entry] = kept + shift
            values.append(run().meta_loss.item())
        parameter[entry] = kept
        slope = (values[0] - values[1]) / (2 * eps)
        own = gradients[index].reshape(-1)[entry].item()
        assert own == pytest.approx(slope, rel=1e-4, abs=1e-9)


@pytest.mark.usefixtures("float64_networks")
def test_of_the_method_that_reverts_moves_some_are_reverted_and_some_stay():
    """So the meta-gradients below go through both kinds."""
    problem = make_problem()
    optimizer = LearnedOptimizer(problem, build(REVERTING).double())
    for _ in range(3):
        optimizer.zero_grad()
        problem().sum().backward()
        optimizer.step()
        move = optimizer.teleportation
        assert not move.rejected.any()
        assert move.reverted.tolist() == [False, False, True]
        for task, back in enumerate(move.reverted.tolist()):
            pairs = zip(move.before, move.after, strict=True)
            assert all(torch.equal(old[task], new[task]) == back for old, new in pairs)


@pytest.mark.usefixtures("float64_networks")
@pytest.mark.parametrize("method", ALL)
def test_meta_gradient_of_one_step_equals_finite_differences(method):
    """What the networks see at w_0 depends on no meta-parameter, so first order is exact here."""
    check_finite_differences(build(method).double(), steps=1, second_order=False)


@pytest.mark.usefixtures("float64_networks")
@pytest.mark.parametrize("method", ALL)
def test_meta_gradient_of_a_window_equals_finite_differences_with_frozen_observations(
    method, monkeypatch
):
    """First order means: what the networks see counts as constant. So it is held constant here,
    recorded in the first run and replayed in the shifted ones, while weights and states move."""
    recorded, calls = [], iter(())
    original = Observation.of

    def of(cls, *arguments):
        nonlocal calls
        if len(recorded) < 3:
            recorded.append(original(*arguments))
            return recorded[-1]
        seen = next(calls, None)
        if seen is None:
            calls = iter(recorded)
            seen = next(calls)
        return seen

    monkeypatch.setattr(Observation, "of", classmethod(of))
    check_finite_differences(build(method).double(), steps=3, second_order=False)
    assert not torch.equal(recorded[0].parameters[0], recorded[2].parameters[0])


@pytest.mark.usefixtures("float64_networks")
@pytest.mark.parametrize("method", ALL)
def test_second_order_equals_finite_differences_with_what_the_lstms_see_frozen(method, monkeypatch):
    """The step that the heads make of gradients and scales moves with the weights; the numbers
    that enter the LSTMs are recorded in the first run and replayed in the shifted ones."""
    recorded: list[Observation] = []
    steps, at = 3, [0]
    original, own_numbers = Observation.of, Observation.numbers.func

    def of(cls, *arguments):
        seen = original(*arguments)
        if len(recorded) < steps:
            recorded.append(own_numbers(seen))
        seen.__dict__["numbers"] = recorded[at[0] % steps]
        at[0] += 1
        return seen

    monkeypatch.setattr(Observation, "of", classmethod(of))
    check_finite_differences(build(method).double(), steps, second_order=True)
    assert not torch.equal(recorded[0].parameters[0], recorded[2].parameters[0])
    assert not any(t.requires_grad for seen in recorded for t in seen.parameters)


class Saved:
    """A tensor that autograd keeps for a backward pass."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@pytest.mark.parametrize("method", METHODS)
def test_memory_does_not_grow_with_the_number_of_windows(method, monkeypatch):
    """Python tensors, tensors that graphs hold, and the weights that ``higher`` keeps."""
    runs, tensors, kept, fast = [], [], weakref.WeakSet(), []
    unroll_module = import_module("metaopt.training.unroll")  # the package has a function so called
    original = unroll_module.differentiable

    class Spied:
        def __init__(self, *arguments):
            self.context = original(*arguments)

        def __enter__(self):
            runs.append(self.context.__enter__())
            return runs[-1]

        def __exit__(self, *error):
            return self.context.__exit__(*error)

    def pack(tensor: Tensor) -> Saved:
        nonlocal packed
        packed += 1
        saved = Saved(tensor.detach())  # with its graph it would hold itself
        kept.add(saved)
        return saved

    monkeypatch.setattr(unroll_module, "differentiable", Spied)
    graph_held, packed = [], 0
    problem = make_problem()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        optimizer = LearnedOptimizer(problem, build(method))
        for done, _ in enumerate(unroll(problem, optimizer, 24, 2, LogMean(1e-6)), start=1):
            if done in (3, 12):
                gc.collect()
                tensors.append(sum(issubclass(type(o), Tensor) for o in gc.get_objects()))
                graph_held.append(len(kept))
            fast.append(len(runs[0].network._fast_params))
            current = runs[0].network.fast_params
            states = [t for s in runs[0].optimizer.learned_state.values() for t in s]
            assert all(t.is_leaf for t in [*current, *states])
    assert fast == [1] * 12
    assert tensors[0] == tensors[1]
    assert graph_held[0] == graph_held[1] < packed / 12


def test_gradients_reach_the_networks_without_a_graph_of_their_own(monkeypatch):
    """In first order, their graph would only cost time and memory."""
    seen, real = [], MetaOptimizer.advance

    def advance(self, chain, layer_input, now, *rest):
        seen.extend(now.gradients)
        return real(self, chain, layer_input, now, *rest)

    monkeypatch.setattr(MetaOptimizer, "advance", advance)
    problem = make_problem()
    optimizer = LearnedOptimizer(problem, build("LSTM(update)"))
    list(unroll(problem, optimizer, 4, 2, LOSSES["log"], second_order=False))
    assert len(seen) == 8
    assert not any(gradient.requires_grad for gradient in seen)


def test_later_windows_use_meta_parameters_changed_in_place():
    meta, problem, changed = build("LSTM(update)"), make_problem(), make_problem()
    kept = [w.losses for w in unroll(problem, LearnedOptimizer(problem, meta), 6, 3, LOSSES["log"])]
    windows = unroll(changed, LearnedOptimizer(changed, meta), 6, 3, LOSSES["log"])
    assert torch.equal(next(windows).losses, kept[0])
    with torch.no_grad():
        meta.update.lstm.head_bias.add_(0.1)
    assert not torch.equal(next(windows).losses, kept[1])


def test_windows_cut_gradients_but_not_the_trajectory():
    losses, gradients = [], []
    for window in (3, 6):
        meta, problem = build("LSTM(update,tele)"), make_problem()
        run = list(unroll(problem, LearnedOptimizer(problem, meta), 6, window, LOSSES["sum"]))
        losses.append(torch.cat([w.losses for w in run]))
        gradients.append(sum(w.gradients[0] for w in run))
    torch.testing.assert_close(*losses, rtol=0, atol=0)
    assert not torch.allclose(*gradients, rtol=1e-3)


def test_frozen_meta_parameters_get_no_gradient_and_the_others_do():
    meta, problem = build("LSTM(update,tele)"), make_problem()
    meta.element.requires_grad_(False)
    (window,) = unroll(problem, LearnedOptimizer(problem, meta), 3, 3, LOSSES["log"])
    assert [g.shape for g in window.gradients] == [p.shape for p in meta.update.parameters()]
    assert all(p.grad is None for p in [*meta.parameters(), *problem.parameters()])


def test_meta_losses_are_their_formulas():
    losses = torch.tensor([[1.0, 10.0], [1e-8, 3.0], [0.0, 5.0]], dtype=torch.float64)
    logs = [math.log(value + 1e-6) for value in losses.flatten().tolist()]
    assert META_LOSSES["log"](1e-6)(losses).item() == pytest.approx(sum(logs) / 6)
    assert META_LOSSES["sum"]()(losses).item() == pytest.approx((1.0 + 1e-8 + 18.0) / 2)
    with pytest.raises(UserError, match="log_floor of 0 or more"):
        META_LOSSES["log"](-1.0)


@pytest.mark.usefixtures("float64_networks")
@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("segment", [1, 2, 5])
@pytest.mark.parametrize("method", METHODS)
def test_a_window_whose_graph_is_made_again_has_the_same_meta_gradient(
    method, segment, second_order
):
    meta = build(method).double()
    whole, parts = [], []
    for windows, recompute in ((whole, 0), (parts, segment)):
        problem = make_problem()
        optimizer = LearnedOptimizer(problem, meta)
        windows += unroll(problem, optimizer, 8, 5, LOSSES["log"], second_order, recompute)
    for own, other in zip(parts, whole, strict=True):
        assert torch.equal(own.losses, other.losses)
        assert own.rejected == other.rejected
        assert own.meta_loss == other.meta_loss
        for found, expected in zip(own.gradients, other.gradients, strict=True):
            scale = float(expected.abs().max())
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10 * scale)
