"""The table of methods: one battery over all of it, and plain torch loops as oracles."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from metaopt.errors import UserError
from metaopt.evaluation.methods import (
    BASELINES,
    TELEPORT_STEPS,
    Method,
    chain_methods,
    default_methods,
    describe,
    register_method,
    resolve,
)
from metaopt.evaluation.ordinary import ORDINARY
from metaopt.evaluation.rollout import Trajectory, rollout
from metaopt.learned.checkpoint import pretrained_names, pretrained_path
from metaopt.tasks import Regression, RegressionFamily

torch.set_num_threads(1)  # the tensors are tiny; more threads only wait for one another

SEEDS = (0, 1, 2)
SMALL = RegressionFamily(samples=6, input=7, hidden=5, output=4, dtype="float64")
SINGLE = RegressionFamily(samples=6, input=7, hidden=5, output=4, dtype="float32")
SQUARE = RegressionFamily.square(12)  # lstm_lr_tele diverges on some narrower problems
STEPS = max(TELEPORT_STEPS) + 2  # past the teleportation

ALL = chain_methods()
LEARNED = pretrained_names()

Build = Callable[[Sequence[nn.Parameter], float], torch.optim.Optimizer]

PLAIN: dict[str, Build] = {
    "gd": lambda w, lr: torch.optim.SGD(w, lr),
    "sgd": lambda w, lr: torch.optim.SGD(w, lr),
    "momentum": lambda w, lr: torch.optim.SGD(w, lr, momentum=0.9),
    "nesterov": lambda w, lr: torch.optim.SGD(w, lr, momentum=0.9, nesterov=True),
    "adagrad": lambda w, lr: torch.optim.Adagrad(w, lr),
    "rmsprop": lambda w, lr: torch.optim.RMSprop(w, lr),
    "adam": lambda w, lr: torch.optim.Adam(w, lr),
    "lbfgs": lambda w, lr: torch.optim.LBFGS(w, lr, max_iter=1, history_size=20),
    "muon": lambda w, lr: torch.optim.Muon(w, lr, weight_decay=0.0),
}
"""What each baseline is, on ordinary two-dimensional parameters."""

# L-BFGS divides differences of gradients by one another, which enlarges float32's rounding.
ROUNDING = {"lbfgs": 1e-3}


def run(name: str, problem: Regression, steps: int = STEPS) -> Trajectory:
    return rollout(problem, resolve(name).optimizer(problem), steps)


def plain_loop(build: Build, rate: float, problem: Regression, steps: int) -> Tensor:
    """Losses of one unbatched problem under ``zero_grad``, ``backward``, ``step``."""
    w1, w2 = (nn.Parameter(w.detach()[0].clone()) for w in (problem.W1, problem.W2))
    x, y = problem.x[0], problem.y[0]
    optimizer = build([w1, w2], rate)

    def loss() -> Tensor:
        return 0.5 * ((y - w2 @ functional.leaky_relu(w1 @ x, 0.1)) ** 2).sum()

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    losses = []
    for _ in range(steps):
        losses.append(loss().item())
        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
    losses.append(loss().item())
    return torch.tensor(losses, dtype=torch.float64)


def test_the_table_holds_the_promised_names() -> None:
    teleporting = {"gd_tele", "momentum_tele", "adagrad_tele", "rmsprop_tele", "adam_tele"}
    assert set(BASELINES) >= set(PLAIN) | teleporting
    assert set(LEARNED) >= {"lstm_update", "lstm_update_tele", "lstm_lr_tele"}
    assert [
        name for name in [*BASELINES, *LEARNED] if name not in ORDINARY or name == "muon"
    ] == ALL
    assert set(default_methods()) == {*LEARNED, "gd"}


def test_gd_keeps_the_rate_of_the_paper() -> None:
    assert BASELINES["gd"].rate == 3e-4


@pytest.mark.parametrize("name", ALL)
def test_resolves_to_a_fresh_torch_optimizer_for_each_problem(name: str) -> None:
    method = resolve(name)
    assert method.name == name
    assert method.learned == (name in LEARNED)
    assert (method.rate is None) == method.learned
    first, second = (method.optimizer(SMALL.sample([seed])) for seed in (0, 0))
    assert isinstance(first, torch.optim.Optimizer)
    assert first is not second


# SOAP makes no step at first, and its rate was chosen for step 100 of 20x20 problems: on smaller
# ones it overshoots for longer than this.
SLOWER = {"soap": ("soap@0.03", 9)}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("family", [SMALL, SINGLE, SQUARE], ids=["float64", "float32", "square"])
def test_lowers_the_loss_of_every_problem_within_a_few_steps(
    name: str, family: RegressionFamily
) -> None:
    text, steps = SLOWER.get(name, (name, 5))
    losses = run(text, family.sample(SEEDS), steps).losses
    assert losses.isfinite().all()
    assert (losses[steps] < 0.95 * losses[0]).all()


@pytest.mark.parametrize("name", ALL)
def test_a_batch_equals_its_problems_alone(name: str) -> None:
    float32_inside = name in LEARNED or name == "soap"
    tolerance = 1e-4 if float32_inside else 1e-8
    batch = run(name, SMALL.sample(SEEDS))
    for b, seed in enumerate(SEEDS):
        alone = run(name, SMALL.sample([seed]))
        torch.testing.assert_close(
            batch.losses[:, b], alone.losses[:, 0], rtol=tolerance, atol=tolerance
        )
        torch.testing.assert_close(
            batch.grad_norms[:, b], alone.grad_norms[:, 0], rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("name", ALL)
def test_a_problem_that_overflows_leaves_the_others_alone(name: str) -> None:
    whole = SMALL.sample(SEEDS)
    w1 = whole.W1.detach().clone()
    w1[1] *= 1e200
    batch = run(name, Regression([w1, whole.W2.detach()], whole.x, whole.y))
    healthy = run(name, SMALL.sample([SEEDS[0], SEEDS[2]]))
    assert not batch.losses[-1, 1].isfinite()
    torch.testing.assert_close(batch.losses[:, [0, 2]], healthy.losses, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ALL)
def test_the_same_seed_gives_the_same_run(name: str) -> None:
    first, second = (run(name, SINGLE.sample(SEEDS)).losses for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", PLAIN)
def test_equals_a_plain_torch_loop_on_matrices(name: str, dtype: str) -> None:
    family = SMALL if dtype == "float64" else SINGLE
    tolerance = 1e-9 if dtype == "float64" else ROUNDING.get(name, 2e-5)
    rate = BASELINES[name].rate
    assert rate is not None
    ours = run(name, family.sample(SEEDS), steps=10).losses
    for b, seed in enumerate(SEEDS):
        theirs = plain_loop(PLAIN[name], rate, family.sample([seed]), steps=10)
        torch.testing.assert_close(ours[:, b], theirs, rtol=tolerance, atol=0)


@pytest.mark.parametrize("name", [name for name in BASELINES if name.endswith("_tele")])
def test_teleporting_equals_its_base_until_it_teleports(name: str) -> None:
    base = name.removesuffix("_tele")
    at = min(TELEPORT_STEPS)
    rate = BASELINES[name].rate
    moved = run(name, SMALL.sample(SEEDS)).losses
    plain = run(f"{base}@{rate}", SMALL.sample(SEEDS)).losses
    assert torch.equal(moved[: at + 1], plain[: at + 1])
    assert (moved[at + 1] != plain[at + 1]).all()


@pytest.mark.parametrize("name", [name for name in ALL if name.endswith("_tele")])
def test_a_teleportation_moves_the_weights_and_keeps_the_output(name: str) -> None:
    trajectory = run(name, SMALL.sample(SEEDS))
    defects = trajectory.invariance_errors[max(TELEPORT_STEPS) + 1]
    assert not trajectory.rejected.any()
    assert (defects < 1e-10).all()


@pytest.mark.parametrize("name", [name for name in ALL if name in BASELINES])
def test_a_rate_after_the_name_replaces_the_rate(name: str) -> None:
    default = BASELINES[name].rate
    assert default is not None
    text = f"{name}@{default / 2:g}"
    method = resolve(text)
    assert (method.name, method.rate) == (text, float(f"{default / 2:g}"))
    assert BASELINES[name].rate == default
    optimizer = method.optimizer(SMALL.sample([0]))
    inner = getattr(optimizer, "optimizers", [optimizer])[0]
    rates = [group.get("lr", group.get("damping")) for group in inner.param_groups]
    if name == "kfac":
        rates = [inner.meta.spec.kfac_rate]
    assert rates == [method.rate]


def test_a_rate_in_exponent_notation_steps_with_it() -> None:
    ours = run("adam@5e-2", SINGLE.sample([1]), steps=10).losses[:, 0]
    theirs = plain_loop(PLAIN["adam"], 0.05, SINGLE.sample([1]), steps=10)
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", LEARNED)
def test_the_path_of_a_shipped_checkpoint_equals_its_name(name: str) -> None:
    path = str(pretrained_path(name))
    method = resolve(path)
    assert method.learned
    assert method.name == path
    by_path = rollout(problem := SINGLE.sample(SEEDS), method.optimizer(problem), 5).losses
    assert torch.equal(by_path, run(name, SINGLE.sample(SEEDS), steps=5).losses)
    assert "spec" in describe(method)["checkpoint"]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("adamm", "adam"),
        ("Adam", "adam"),
        ("adamm@0.1", "adam"),
        ("lstm-update", "lstm_update"),
        ("lstm_update_tel", "lstm_update_tele"),
        ("", ""),
        ("z" * 600, ""),
    ],
)
def test_an_unknown_method_is_answered_with_the_one_that_is_meant(text: str, meant: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(text)
    message = str(caught.value)
    assert len(message) < 300
    assert repr(text.partition("@")[0])[:20] in message
    assert "gd, sgd, " in message
    assert message.endswith(f": did you mean {meant}?" if meant else "or --import its module")


@pytest.mark.parametrize("rate", [-1.0, 0, float("nan"), float("inf"), "0.1", True])
def test_a_method_is_not_registered_with_a_rate_that_is_no_positive_number(rate: float) -> None:
    with pytest.raises(UserError, match="positive learning rate of the method 'mine'"):
        register_method("mine", lambda tasks, rate: torch.optim.SGD(tasks.parameters(), rate), rate)
    assert "mine" not in BASELINES


def test_a_shipped_method_is_not_replaced_by_whatever_way() -> None:
    gd, adam = BASELINES["gd"], BASELINES["adam"]
    ways: list[Callable[[], object]] = [
        lambda: BASELINES.__setitem__("gd", adam),
        lambda: BASELINES.update(gd=adam),
        lambda: BASELINES.update({"gd": adam}),
        lambda: BASELINES.__ior__({"gd": adam}),
        lambda: BASELINES.add("gd", adam),
    ]
    for way in ways:
        with pytest.raises(UserError, match="'gd', which is taken"):
            way()
    assert BASELINES.setdefault("gd", adam) is BASELINES["gd"] is gd


@pytest.mark.parametrize("entry", [None, "adam", 3, torch.optim.SGD])
def test_what_is_no_method_is_not_registered(entry: object) -> None:
    with pytest.raises(UserError, match="expected a component for the method 'mine'"):
        BASELINES.add("mine", entry)
    assert "mine" not in BASELINES


@pytest.mark.parametrize(
    ("build", "named"), [(lambda tasks, rate: None, "None"), (lambda tasks, rate: 1 / 0, "Zero")]
)
def test_a_method_that_builds_no_optimizer_is_named(build: Build, named: str) -> None:
    with pytest.raises(UserError, match=f"the method 'mine'.*got {named}"):
        Method("mine", build).optimizer(SINGLE.sample([0]))


@pytest.mark.parametrize("rate", ["x", "-1", "0", "nan", "inf", "1e999", ""])
@pytest.mark.parametrize("name", ["adam", "lbfgs", "gd_tele"])
def test_a_rate_that_is_no_positive_number_is_refused(name: str, rate: str) -> None:
    with pytest.raises(UserError, match="positive learning rate") as caught:
        resolve(f"{name}@{rate}")
    assert f"{name}@{rate}" in str(caught.value)


@pytest.mark.parametrize("name", LEARNED)
def test_a_learned_method_takes_no_rate(name: str) -> None:
    with pytest.raises(UserError, match="without a rate"):
        resolve(f"{name}@0.1")


def test_a_missing_checkpoint_is_named() -> None:
    with pytest.raises(UserError, match=r"nowhere/gone\.safetensors.*does not exist"):
        resolve("nowhere/gone.safetensors")
