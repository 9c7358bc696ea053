"""The two optimizers on hostile options, weights, gradients and batches."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from fuzz_cases import TEXTS, attempt, fuzzed, values
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

import metaopt
from metaopt import LearnedOptimizer, TeleportingOptimizer
from metaopt.learned.meta_optimizer import MetaOptimizer
from metaopt.symmetry import ACTIONS

ENTRIES = (float("nan"), float("inf"), float("-inf"), 0.0, 1e-45, 1e30, -3e38, 1.0)
SHIPPED = metaopt.list_pretrained()
ACTION_NAMES = ("auto", "none", *ACTIONS)
LOSSES = (
    nn.MSELoss(),
    nn.MSELoss(reduction="sum"),
    nn.L1Loss(),
    nn.HuberLoss(),
    lambda output, y: output.sum(),
)
BUFFERS = ("keep", "reset", "transport")
BASES: tuple[Callable[..., torch.optim.Optimizer], ...] = (
    torch.optim.SGD,
    lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9),
    torch.optim.Adam,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
    lambda p, lr: torch.optim.LBFGS(p, lr, max_iter=2),
    torch.optim.Muon,
)


@cache
def loaded(name: str) -> MetaOptimizer:
    return metaopt.load_pretrained(name)


def networks() -> tuple[Callable[[], nn.Module], ...]:
    return (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.LeakyReLU(0.1), nn.Linear(4, 2)),
        lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)),
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)),
        lambda: nn.Sequential(nn.Linear(3, 2)),
        lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.LayerNorm(4), nn.Linear(4, 2)),
        lambda: nn.Sequential(
            nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)
        ),
        lambda: nn.Sequential(nn.Linear(3, 1, bias=False), nn.ReLU(), nn.Linear(1, 2, bias=False)),
    )  # fmt: skip


@st.composite
def models(draw: st.DrawFn) -> nn.Module:
    """Small ones; often an entry is anything, or all of them are huge or 0."""
    with torch.random.fork_rng():
        torch.manual_seed(draw(st.integers(0, 3)))
        model = draw(st.sampled_from(networks()))()
    parameters = list(model.parameters())
    with torch.no_grad():
        if draw(st.booleans()):
            chosen = draw(st.sampled_from(parameters)).view(-1)
            chosen[draw(st.integers(0, chosen.numel() - 1))] = draw(st.sampled_from(ENTRIES))
        scale = draw(st.sampled_from((1.0, 1.0, 0.0, 1e-20, 1e15)))
        for parameter in parameters:
            parameter.mul_(scale)
        if draw(st.integers(0, 5)) == 0:
            parameters[0].requires_grad_(False)
    return model.double() if draw(st.booleans()) else model


@st.composite
def batches(draw: st.DrawFn) -> list[tuple[Tensor, Tensor]]:
    """Three, of 0 to 3 samples or the same one again; with entries that are anything."""
    some: list[tuple[Tensor, Tensor]] = []
    for _ in range(3):
        if some and draw(st.booleans()):
            some.append(some[-1])
            continue
        samples = draw(st.sampled_from((0, 1, 2, 3, 6)))
        generator = torch.Generator().manual_seed(draw(st.integers(0, 3)))
        x, y = (torch.randn(samples, width, generator=generator) for width in (3, 2))
        if samples and draw(st.booleans()):
            x[0, draw(st.integers(0, 2))] = draw(st.sampled_from(ENTRIES))
        some.append((x * draw(st.sampled_from((1.0, 1.0, 0.0, 1e18))), y))
    return some


def like(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    kind = next(model.parameters()).dtype
    return batch[0].to(kind), batch[1].to(kind)


@fuzzed(50, 800)
@given(
    models(), batches(), st.sampled_from(SHIPPED), st.sampled_from(LOSSES),
    st.sampled_from(ACTION_NAMES), st.sampled_from((1.0, 0.0, 1e-30, 1e20)), st.booleans(),
)  # fmt: skip
def test_steps_of_a_learned_optimizer(model, some, name, loss_fn, action, lr, told) -> None:
    """Weights that were finite stay so."""

    def run() -> None:
        known = loss_fn if told else None
        optimizer = LearnedOptimizer(model, loaded(name), lr, known, action)
        for batch in some:
            x, y = like(model, batch)
            optimizer.zero_grad()
            loss_fn(model(x), y).backward()
            optimizer.step()
        optimizer.report()
        optimizer.load_state_dict(optimizer.state_dict())

    finite = all(p.isfinite().all() for p in model.parameters())
    attempt(run)
    assert not finite or all(p.isfinite().all() for p in model.parameters())


@fuzzed(50, 800)
@given(
    models(), batches(), st.sampled_from(BASES), st.sampled_from(LOSSES),
    st.sampled_from(("auto", *ACTIONS)), st.sampled_from((0.0, 1e-3, 1e20)),
    st.sampled_from(BUFFERS), st.sampled_from((None, 1, [0, 1], [2])),
)  # fmt: skip
def test_steps_of_a_teleporting_optimizer(
    model, some, base, loss_fn, action, lr, buffers, schedule
) -> None:
    """A teleport keeps the output, or is reverted; the base's own step may do anything."""
    try:
        inner = base(model.parameters(), lr=lr)
    except ValueError:  # torch's own: Muon takes matrices alone, SGD some rates
        return

    def run() -> None:
        optimizer = TeleportingOptimizer(
            inner, model, loss_fn, action, schedule=schedule, buffers=buffers
        )
        for batch in some:
            x, y = like(model, batch)
            closure = None
            if isinstance(inner, torch.optim.LBFGS):

                def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
                    optimizer.zero_grad()
                    loss = loss_fn(model(x), y)
                    loss.backward()
                    return loss

            optimizer.zero_grad()
            loss_fn(model(x), y).backward()
            optimizer.step(closure, batch=(x, y))
        before = [p.detach().clone() for p in model.parameters()]
        move = optimizer.teleport(x, y)
        if all(p.isfinite().all() for p in before):
            assert all(p.isfinite().all() for p in model.parameters())
        move.invariance_error()
        optimizer.report()
        optimizer.load_state_dict(optimizer.state_dict())

    attempt(run)


layers = st.sampled_from(("0", "1", "2", "9", "x", ""))
sites = st.none() | st.lists(st.tuples(layers, layers), max_size=2)
rates = st.floats() | st.integers(-3, 3) | st.sampled_from((10**30, 1e308, -0.0))


@fuzzed(80, 700)
@given(
    st.sampled_from((*SHIPPED, *TEXTS)) | st.text(max_size=4), rates,
    st.sampled_from((None, *LOSSES, "mse", 3, nn.MSELoss)),
    st.sampled_from((*ACTION_NAMES, *TEXTS)), sites,
)  # fmt: skip
@example(SHIPPED[0], 10**400, None, "auto", None)
def test_options_of_a_learned_optimizer(name, lr, loss_fn, action, where) -> None:
    """Values of the right type are complained of in one line."""
    model = networks()[0]()
    attempt(lambda: LearnedOptimizer(model, name, lr, loss_fn, action, where))


@fuzzed(60, 400)
@given(values, values, values)
def test_options_of_a_wrong_type(name, lr, action) -> None:
    """Python says so itself where a type is wrong, before anything is built."""
    model = networks()[0]()
    attempt(lambda: LearnedOptimizer(model, name), TypeError)
    attempt(lambda: LearnedOptimizer(model, loaded(SHIPPED[0]), lr), TypeError, ValueError)
    attempt(lambda: LearnedOptimizer(model, loaded(SHIPPED[0]), action=action), TypeError)


@fuzzed(80, 700)
@given(
    st.sampled_from((*LOSSES, None, "mse", 3)), st.sampled_from(("auto", *ACTIONS, *TEXTS)),
    st.integers(-3, 3) | st.lists(st.integers(-2, 9), max_size=3) | st.none() | st.just(10**30),
    st.sampled_from((*BUFFERS, *TEXTS)), sites, rates,
)  # fmt: skip
def test_options_of_a_teleporting_optimizer(
    loss_fn, action, schedule, buffers, where, defect
) -> None:
    model = networks()[0]()
    base = torch.optim.SGD(model.parameters(), 0.1)
    attempt(
        lambda: TeleportingOptimizer(
            base, model, loss_fn, action, schedule, None, buffers, where, defect
        )
    )
