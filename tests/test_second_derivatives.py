"""Operations without a second derivative are named; those with a slower form run in it."""

from dataclasses import replace

import pytest
import torch
from teleporting_cases import LOSS, QUICK, data
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from metaopt import TeleportingOptimizer, UserError
from metaopt.measures import hessian
from metaopt.symmetry import GradientAscent, LevelSetTeleport, gradient_norm
from metaopt.symmetry.functional import second_derivatives


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


class Net(nn.Module):
    """A site between ``a`` and ``b``, and ``rear`` of their output, on which the loss depends."""

    def __init__(self, rear, front=None) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(9, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.rear, self.front = rear, front or nn.Identity()
        self.gate = nn.Hardsigmoid()

    def forward(self, x):
        return self.c(self.rear(self.b(self.a(self.front(x)).relu())))


def changed(h):
    h = h.sigmoid()
    square = h * h
    h.mul_(2)
    return square


X, Y = data(8, dtype=torch.float32)
NAMED = {
    "module": (nn.Hardsigmoid(), r"got hardsigmoid \(in rear and 1 more\)"),
    "function": (F.hardsigmoid, r"got hardsigmoid \(in gate\)"),
    "distances": (lambda h: torch.cdist(h, h + 1)[:, :6], "got cdist"),
    "embedding bag": (lambda h: F.embedding_bag(torch.zeros(8, 2).long(), h), "got embedding_bag"),
    "once": (Square.apply, "got Square, which is marked once_differentiable"),
    "in place": (changed, "got an in-place change of a Mul"),
    "checkpoint": (lambda h: checkpoint(torch.tanh, h, use_reentrant=True), "use_reentrant=True"),
}
QUIET = pytest.mark.filterwarnings(
    "ignore:None of the inputs have requires_grad"
)  # checkpoint's own
EVALUATING = replace(QUICK, objective=lambda values, loss: gradient_norm(values, loss))
SEARCHES = {"ascent": EVALUATING, "level set": LevelSetTeleport(iterations=2)}


def teleporting(model, **options):
    base = torch.optim.SGD(model.parameters(), 0.1)
    return TeleportingOptimizer(base, model, LOSS, **{"search": QUICK, **options})


@QUIET
@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
@pytest.mark.parametrize(("rear", "words"), NAMED.values(), ids=NAMED)
def test_an_operation_without_a_second_derivative_is_named_by_a_teleport(rear, words, search):
    model = Net(rear)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(UserError, match=words) as error:
        teleporting(model, search=search).teleport(X, Y)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300
    assert all(map(torch.equal, before, model.parameters()))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("rear", "words"), NAMED.values(), ids=NAMED)
def test_an_operation_without_a_second_derivative_is_named_by_the_hessian(rear, words):
    model = Net(rear)
    with pytest.raises(UserError, match=words):
        hessian(model, LOSS, X, Y).largest(1)


@pytest.mark.parametrize("front", [nn.Hardsigmoid(), Square.apply], ids=["named", "once"])
def test_what_lies_before_all_that_moves_may_be_of_any_kind(front):
    model = Net(torch.tanh, front)
    assert not teleporting(model, search=EVALUATING).teleport(X, Y).stayed


@pytest.mark.parametrize(
    "rear", [rear for rear, _ in list(NAMED.values())[:-2]], ids=list(NAMED)[:-2]
)
def test_a_search_that_transports_gradients_takes_any_operation(rear):
    assert not teleporting(Net(rear)).teleport(X, Y).stayed


def test_a_search_of_first_derivatives_takes_any_operation():
    search = GradientAscent(iterations=1, objective=lambda values, loss: loss(values))
    teleporting(Net(F.hardsigmoid), search=search, schedule=[0]).step(batch=(X, Y))


def test_a_gradient_that_depends_on_no_weight_is_named():
    weight = torch.ones(2, requires_grad=True)
    (gradient,) = torch.autograd.grad((3 * weight).sum(), weight, create_graph=True)
    with pytest.raises(UserError, match="got a gradient that depends on no weight"):  # noqa: SIM117
        with second_derivatives():
            torch.autograd.grad(gradient.sum(), weight)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shapes cannot"), second_derivatives():
        torch.ones(2, 3) @ torch.ones(2, 3)


def attention(causal):
    def attend(h):
        heads = h.reshape(1, 2, -1, 6)
        return F.scaled_dot_product_attention(heads, heads, heads, is_causal=causal).reshape(-1, 6)

    return attend


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, h):
        return self.inner(h[None], h[None], h[None], need_weights=False)[0][0]


class Recurrent(nn.Module):
    def __init__(self, kind) -> None:
        super().__init__()
        self.inner = kind(6, 6)

    def forward(self, h):
        return self.inner(h)[0]


TWICE = {
    "attention": attention(False), "causal attention": attention(True), "heads": Attention(),
    "LSTM": Recurrent(nn.LSTM), "GRU": Recurrent(nn.GRU), "hardswish": nn.Hardswish(),
    "encoder": nn.TransformerEncoderLayer(6, 2, 8, 0.0, batch_first=True),
    "checkpoint": lambda h: checkpoint(torch.tanh, h, use_reentrant=False),
}  # fmt: skip


@pytest.mark.parametrize("rear", TWICE.values(), ids=TWICE)
def test_a_network_with_attention_or_recurrence_teleports(rear):
    torch.manual_seed(0)
    model = Net(rear if isinstance(rear, nn.Module) else lambda h: rear(h))
    before = model(X).detach()
    for search in SEARCHES.values():
        optimizer = teleporting(model, search=search)
        optimizer.teleport(X, Y)
        assert optimizer.made == 1
        if search is EVALUATING:
            torch.testing.assert_close(model(X).detach(), before, rtol=1e-4, atol=1e-5)
    matrix = hessian(model, LOSS, X, Y)
    assert matrix.product(torch.ones(matrix.size)).isfinite().all()


class TwoHeads(nn.Module):
    """A loss may depend on one of them alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Sequential(nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 3)) for _ in range(2)
        )

    def forward(self, x):
        return self.first(x), self.second(x)


@pytest.mark.parametrize("search", [QUICK, *SEARCHES.values()], ids=["transport", *SEARCHES])
def test_a_loss_need_not_depend_on_all_that_moves(search):
    torch.manual_seed(0)
    model = TwoHeads()
    base = torch.optim.SGD(model.parameters(), 0.1)
    optimizer = TeleportingOptimizer(base, model, lambda o, y: LOSS(o[1], y), search=search)
    before = [p.clone() for p in model.parameters()]
    assert not optimizer.teleport(X, Y).stayed
    same = [torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert all(same[:4])
    assert not all(same)
