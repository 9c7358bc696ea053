"""A closure alone is enough for a scheduled teleport; it leaves nothing behind."""

import copy

import pytest
import torch
from teleporting_cases import LOSS, QUICK, convolutional, data, mlp, norm
from torch import nn
from torch.utils.checkpoint import checkpoint

from metaopt import TeleportingOptimizer, UserError
from metaopt.optim.closure import ClosureLoss, restored
from metaopt.replicas import ALONE
from metaopt.symmetry import GradientAscent, LevelSetTeleport, gradient_norm
from metaopt.symmetry.search import SearchResult


def teleporting(model, rate=1e-2, **options):
    base = torch.optim.SGD(model.parameters(), lr=rate)
    options = {"schedule": (0,), "search": QUICK, **options}
    return TeleportingOptimizer(base, model, LOSS, **options)


def closure_of(model, optimizer, batch, seen=None, zero=True):
    def closure():
        if zero:
            optimizer.zero_grad()
        loss = LOSS(model(batch.x), batch.y)
        loss.backward()
        if seen is not None:
            seen.append(loss.detach())
        return loss

    return closure


SEARCHES = {
    "ascent": QUICK,
    "another objective": GradientAscent(
        iterations=2, objective=lambda w, loss: gradient_norm(w, loss).sqrt()
    ),
    "level set": LevelSetTeleport(iterations=2),
}


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_a_closure_leads_where_its_batch_leads(search):
    model, batch = mlp(), data(6)
    twin = copy.deepcopy(model)
    led, by_batch = (teleporting(own, search=search) for own in (model, twin))
    led.step(closure_of(model, led, batch))
    by_batch.step(closure_of(twin, by_batch, batch), batch)
    assert led.made == by_batch.made == 1
    for own, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-12)
    assert led.teleportation.invariance_error() < 1e-3


class Once(torch.autograd.Function):
    """tanh, which cannot be differentiated twice, as kernels of attention cannot."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.tanh())
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, outer):
        return outer * (1 - ctx.saved_tensors[0] ** 2)


def own_gradients(model, optimizer, batch):
    """A closure that never calls backward."""

    def closure():
        loss = LOSS(model(batch.x), batch.y)
        for p, g in zip(
            model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
        ):
            p.grad = g
        return loss

    return closure


def recomputing(model, optimizer, batch):
    """A closure whose backward calls another one inside, as an old checkpoint does."""

    def closure():
        optimizer.zero_grad()
        hidden = model[:4](batch.x)
        loss = LOSS(checkpoint(model[4:], hidden, use_reentrant=True), batch.y)
        loss.backward()
        return loss

    return closure


def compiled(model, optimizer, batch):
    """A closure whose graph may be used once."""
    called = torch.compile(model, backend="aot_eager")

    def closure():
        optimizer.zero_grad()
        loss = LOSS(called(batch.x), batch.y)
        loss.backward()
        return loss

    return closure


CALLS = [(make, name) for make in (closure_of, own_gradients) for name in SEARCHES]


@pytest.mark.parametrize(
    ("make", "search"), [*CALLS, (recomputing, "ascent"), (compiled, "another objective")]
)
def test_where_no_second_derivative_is_known_differences_lead_nearby(make, search):
    once = torch.tanh if make is compiled else Once.apply

    class Smooth(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.function = function

        def forward(self, x):
            return self.function(x)

    gains = []
    for maker, function in ((closure_of, torch.tanh), (make, once)):
        model, batch = mlp().append(Smooth(function)), data(6)
        optimizer = teleporting(model, search=SEARCHES[search], rate=1e-30)
        before = norm(model, batch)
        optimizer.step(maker(model, optimizer, batch))
        assert optimizer.made == 1
        gains.append(norm(model, batch) / before)
    assert gains[0] > 1.01
    assert gains[1] - 1 > 0.8 * (gains[0] - 1)


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_a_closure_that_clips_leads_where_the_gradient_does_and_clips_there(search):
    ends = []
    for clips in (False, True):
        model, batch = mlp(), data(6)
        optimizer = teleporting(model, search=search, rate=1e-30)
        closure = closure_of(model, optimizer, batch)

        def clipping(model=model, closure=closure):
            loss = closure()
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            return loss

        optimizer.step(clipping if clips else closure)
        assert optimizer.made == 1
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*ends)
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    torch.testing.assert_close(norm.item(), 0.01, rtol=1e-3, atol=0)


@pytest.mark.parametrize("backward", ["parts", "together", "with gradients"])
def test_a_closure_may_call_backward_in_any_way(backward):
    model, batch = mlp(), data(6)
    twin = copy.deepcopy(model)
    search = SEARCHES["another objective"]
    optimizer, plain = (teleporting(own, search=search, rate=1e-30) for own in (model, twin))

    def closure():
        optimizer.zero_grad()
        losses = [LOSS(model(batch.x[i::2]), batch.y[i::2]) / 2 for i in (0, 1)]
        if backward == "parts":
            for loss in losses:
                loss.backward()
        elif backward == "together":
            torch.autograd.backward(losses)
        else:
            torch.stack(losses).backward(torch.ones(2).double())
        return sum(losses)

    optimizer.step(closure)
    plain.step(closure_of(twin, plain, batch))
    for own, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-9, atol=1e-12)


def test_the_search_sees_one_pass_as_training_does():
    """With dropout and batch norm; its buffers count one batch a step."""
    model, batch = convolutional(), data(8, 1, 6, 6)
    optimizer, seen = teleporting(model, schedule=(1,)), []
    counted = []
    for _ in range(3):
        optimizer.step(closure_of(model, optimizer, batch, seen))
        counted.append(int(model[1].num_batches_tracked))
    assert counted == [1, 2, 3]
    assert optimizer.made == 1
    assert len(seen) > 4


def test_running_statistics_are_those_of_the_step_alone():
    model, batch = convolutional(), data(8, 1, 6, 6)
    optimizer = teleporting(model, rate=0.0)
    optimizer.param_groups[0]["lr"] = 1e-30
    optimizer.step(closure_of(model, optimizer, batch))
    twin = copy.deepcopy(model)
    twin[1].reset_running_stats()
    twin(batch.x)
    assert optimizer.made == 1
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, twin.get_buffer(name))


def test_a_closure_that_adds_to_gradients_adds_to_them_at_the_new_point():
    """As a framework's does in the last of several passes."""
    model, first, second = mlp(), data(6), data(6, seed=2)
    optimizer = teleporting(model, rate=1e-30)
    LOSS(model(first.x), first.y).backward()
    optimizer.step(closure_of(model, optimizer, second, zero=False))
    assert optimizer.made == 1
    both = LOSS(model(first.x), first.y) + LOSS(model(second.x), second.y)
    expected = torch.autograd.grad(both, list(model.parameters()))
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_closure_that_zeroes_gradients_leaves_those_of_the_new_point(set_to_none):
    model, batch = mlp(), data(6)
    optimizer = teleporting(model, rate=1e-30)
    LOSS(model(batch.x), batch.y).backward()  # what the closure finds again

    def closure():
        optimizer.zero_grad(set_to_none)
        loss = LOSS(model(batch.x), batch.y)
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    expected = torch.autograd.grad(LOSS(model(batch.x), batch.y), list(model.parameters()))
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_a_closure_that_fails_leaves_all_as_it_was(fails_at):
    model, batch, calls = convolutional(), data(8, 1, 6, 6), []
    optimizer = teleporting(model, search=LevelSetTeleport(iterations=1))
    LOSS(model(batch.x), batch.y).backward()
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    gradients = [(p.grad, p.grad.clone()) for p in model.parameters()]

    def closure():
        optimizer.zero_grad(set_to_none=False)
        loss = LOSS(model(batch.x), batch.y)
        loss.backward()
        calls.append(loss)
        if len(calls) == fails_at:
            raise KeyError("data")
        return loss

    with pytest.raises(KeyError):
        optimizer.step(closure)
    assert str((model.state_dict(), optimizer.state_dict())) == str(before)
    for parameter, (gradient, value) in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is gradient
        assert torch.equal(gradient, value)


def test_a_closure_that_does_nothing_is_none():
    """Frameworks pass one where a user's own loop has called backward."""
    model, batch = mlp(), data(6)
    optimizer = teleporting(model, rate=1e-30, schedule=(0, 1))
    LOSS(model(batch.x), batch.y).backward()
    optimizer.step(lambda: None, batch=batch)
    expected = torch.autograd.grad(LOSS(model(batch.x), batch.y), list(model.parameters()))
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)
    for returned in (None, 0.5):
        with pytest.raises(UserError, match="expected batch="):
            optimizer.step(lambda returned=returned: returned)


@pytest.mark.parametrize("returned", [None, "loss", torch.ones(2)])
def test_a_closure_has_to_return_its_loss(returned):
    model, batch = mlp(), data(6)
    optimizer = teleporting(model)

    def closure():
        optimizer.zero_grad()
        LOSS(model(batch.x), batch.y).backward()
        return returned

    with pytest.raises(UserError, match="expected a closure that returns its loss, one number"):
        optimizer.step(closure)
    assert optimizer.steps == 0


@pytest.mark.parametrize("action", ["auto", "pre_activation"])
def test_a_group_that_acts_on_a_batch_needs_the_batch(action):
    model = nn.Sequential(nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    optimizer, batch = teleporting(model, action=action), data(5)
    with pytest.raises(UserError, match="for a closure alone, got one that acts on a batch"):
        optimizer.step(closure_of(model, optimizer, batch))
    optimizer.step(closure_of(model, optimizer, batch), batch)
    assert optimizer.made == 1


def test_a_move_whose_loss_changes_is_reverted():
    def search(orbit, parameters, loss):
        return SearchResult([9.0 * own for own in parameters], torch.tensor(False))

    model, batch = mlp(), data(6)
    optimizer = teleporting(model, search=search, rate=1e-30)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step(closure_of(model, optimizer, batch))
    assert (optimizer.made, optimizer.undone) == (0, 1)
    for own, start in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(own.detach(), start)


def test_the_closure_is_not_called_again_when_a_move_is_looked_at_later():
    model, batch, seen = mlp(), data(6), []
    optimizer = teleporting(model)
    optimizer.step(closure_of(model, optimizer, batch, seen))
    calls = len(seen)
    assert optimizer.teleportation.invariance_error() < 1e-9
    assert "stayed=False" in repr(optimizer.teleportation)
    assert len(seen) == calls
    with pytest.raises(UserError, match="a move that a closure led, got some"):
        optimizer.teleportation.invariance_error(batch.x)


def test_its_hessian_vector_products_are_those_of_the_loss():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    x, y = torch.randn(8, 4).double(), torch.randn(8, 2).double()
    parameters = list(model.parameters())
    values = [p.detach() + 0.1 for p in parameters]

    def closure():
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    def by_hand(own):
        names = [name for name, _ in model.named_parameters()]
        output = torch.func.functional_call(model, dict(zip(names, own, strict=True)), x)
        return (output - y).square().mean()

    results = []
    with restored(model, parameters):
        for loss in (ClosureLoss(closure, parameters, parameters, ALONE), by_hand):
            own = [value.clone().requires_grad_() for value in values]
            value = loss(own)
            gradients = torch.autograd.grad(value, own, create_graph=True)
            square = sum(g.square().sum() for g in gradients)
            results.append((value.detach(), *gradients, *torch.autograd.grad(square, own)))
    for own, expected in zip(*results, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-6)
