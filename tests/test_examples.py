"""The examples of docs/extending.md: each runs, and what it adds does what it says."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from cases import Drawn, act
from script_cases import load

from metaopt.evaluation.methods import BASELINES
from metaopt.evaluation.rollout import rollout
from metaopt.symmetry import ACTIONS, KINDS, STEPS, Element, LeakyReLU
from metaopt.symmetry.chain import Layer
from metaopt.tasks import RegressionFamily, first_seeds
from metaopt.training.distributions import TASK_DISTRIBUTIONS

torch.set_num_threads(1)

DOCS = Path(__file__).parents[1] / "docs"
EXAMPLES = sorted((DOCS / "examples").glob("*.py"))
TABLES: tuple[dict[Any, Any], ...] = (ACTIONS, BASELINES, TASK_DISTRIBUTIONS, STEPS, KINDS)


@pytest.fixture(autouse=True)
def _tables_as_they_were() -> Iterator[None]:
    """Examples enter themselves; other tests must not see it."""
    kept = [dict(table) for table in TABLES]
    with torch.random.fork_rng():
        yield
    for table, entries in zip(TABLES, kept, strict=True):
        table.clear()
        table.update(entries)


def example(name: str) -> ModuleType:
    """The module of a file of docs/examples."""
    return load(DOCS / "examples" / f"{name}.py")


def test_the_pages_show_every_example_whole() -> None:
    pages = "".join(page.read_text() for page in sorted(DOCS.glob("*.md")))
    shown = re.findall(r"^```{literalinclude} examples/(\w+)\.py\n(.*?)^```", pages, re.M | re.S)
    assert dict(shown) == {path.stem: ":language: python\n" for path in EXAMPLES}
    assert len(shown) == len(EXAMPLES)


def test_an_example_runs_as_a_script() -> None:
    command = [sys.executable, str(DOCS / "examples" / "add_action.py")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "invariance error" in run.stdout
    assert not run.stderr


def test_the_action_keeps_the_loss_and_raises_the_gradient_to_its_bound() -> None:
    measured = example("add_action").main()
    assert measured["loss after"] == pytest.approx(measured["loss before"], rel=1e-5)
    assert measured["invariance error"] < 1e-5
    ratio = measured["squared gradient norm after"] / measured["squared gradient norm before"]
    assert 2 < ratio < 4.001


def test_the_action_is_exact_for_squares_alone() -> None:
    module = example("add_action")
    action = module.SquareAction()
    seeded = {"generator": torch.Generator().manual_seed(0), "dtype": torch.float64}
    incoming = Layer(torch.rand(4, 3, **seeded), torch.rand(4, **seeded))
    outgoing = Layer(torch.rand(2, 4, **seeded), torch.rand(2, **seeded))
    h = torch.randn(3, 50, **seeded)
    t = torch.tensor([0.5, -0.5, 1.0, 0.0], dtype=torch.float64)
    squares, others = (
        Drawn(incoming, outgoing, h, between) for between in (module.Square(), LeakyReLU())
    )
    move = act(action, Element(t, diagonal=True), squares)
    assert not move.rejected
    assert move.invariance_error < 1e-14
    torch.testing.assert_close(move.incoming.bias, incoming.bias * t.exp())
    assert torch.equal(move.outgoing.bias, outgoing.bias)
    assert act(action, Element(t, diagonal=True), others).invariance_error > 1e-3
    assert action.max_samples(squares.site) == math.inf
    assert action.max_samples(others.site) == 0
    assert action.obstacle(squares.site) is None
    assert "not the square" in action.obstacle(others.site)


def test_the_problem_is_drawn_by_seed_and_solved_by_the_learned_optimizer() -> None:
    module = example("add_problem")
    family = module.RobustFamily()
    together, alone = family.sample([3, 5]), family.sample([5])
    assert torch.equal(together()[1:], alone())
    assert sum(p[0].numel() for p in alone.parameters()) == family.coordinates
    residuals = alone.y - alone.chain.output(alone.chain.layers([alone.w1, alone.w2]), alone.x)
    printed = family.scale**2 * ((1 + (residuals / family.scale).square()).sqrt() - 1)
    torch.testing.assert_close(alone(), printed.sum(dim=(-2, -1)))
    measured = module.main()
    assert measured["lstm_update_tele"] < 1e-8 < measured["Adam"] < measured["at the start"]
    assert math.isfinite(measured["validation score of the training"])


def test_the_distribution_is_trained_on() -> None:
    trainer = example("add_problem").trained()
    assert trainer.finished
    assert trainer.meta_steps > 0
    assert trainer.skipped == 0


def test_the_objective_balances_the_network_and_keeps_its_loss() -> None:
    measured = example("add_objective").main()
    assert measured["loss after"] == pytest.approx(measured["loss before"], rel=1e-5)
    assert measured["invariance error"] < 1e-5
    assert measured["squared norm after"] < 0.5 * measured["squared norm before"]
    assert measured["imbalance before"] > 10
    assert measured["imbalance after"] < 1.01


def test_the_optimizer_is_a_method_and_its_buffer_is_transported() -> None:
    module = example("add_optimizer")
    table = module.main().splitlines()
    assert [line.split()[0] for line in table[1:]] == ["lion", "lion_tele", "lion@0.001", "gd"]
    family = RegressionFamily.square(8)
    assert BASELINES["lion"].rate == min((1e-3, 1e-2, 1e-1), key=lambda r: last(module, family, r))
    problem = family.sample(first_seeds("test", 2))
    optimizer = BASELINES["lion_tele"].optimizer(problem)
    first = problem().detach()
    for _ in range(20):
        optimizer.step(lambda: _differentiated(problem))
    assert optimizer.made == 1
    assert (problem() < first).all()


def test_the_optimizer_makes_its_printed_step() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    optimizer = example("add_optimizer").Lion([weight], lr=0.25)
    weight.grad = torch.tensor([3.0, -1.0, 0.0])
    optimizer.step()
    assert torch.equal(weight.detach(), torch.tensor([0.75, -1.75, 0.5]))
    momentum = optimizer.state[weight]["momentum_buffer"]
    torch.testing.assert_close(momentum, 0.01 * weight.grad)
    weight.grad = torch.tensor([-0.1, 4.0, 0.0])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([0.5, -2.0, 0.5]))


def test_the_own_task_trains_an_optimizer_that_can_be_used(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "docs.examples.own_task"]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=True, cwd=DOCS.parent
    )
    accuracies = [float(line.split()[-1]) for line in run.stdout.splitlines()]
    assert len(accuracies) == 2
    assert accuracies[1] > 0.6  # of lstm_layerwise; a guess has 0.33


def test_the_own_task_has_splits_of_its_own() -> None:
    task = example("own_task").Spirals()
    first = {s: next(task.batches(4, s))[0] for s in ("train", "validation", "test")}
    assert not torch.equal(first["train"], first["test"])
    assert not torch.equal(first["train"], first["validation"])
    assert not torch.equal(first["validation"], first["test"])


def last(module: ModuleType, family: RegressionFamily, rate: float) -> float:
    """Mean log loss of Lion after 50 steps on the validation problems that choose its rate."""
    problem = family.sample(first_seeds("validation", 4))
    losses = rollout(problem, module.Lion(problem.parameters(), lr=rate), 50).losses[-1]
    return float(losses.log().mean())


def _differentiated(problem: torch.nn.Module) -> torch.Tensor:
    problem.zero_grad()
    total = problem().sum()
    total.backward()
    return total.detach()


@pytest.mark.parametrize(
    "words",
    [
        ["eval_meta.py", "--import", "docs.examples.add_optimizer",
         "--methods", "lion,lion_tele,gd", "--problems", "2", "--steps", "6"],
        ["train_meta.py", "--import", "docs.examples.add_problem", "--problems", "robust",
         "--hidden", "3", "--trajectories", "2", "--batch_size", "1", "--steps", "4",
         "--validation_problems", "1", "--validation_at", "[2]", "--validation_families", "[]"],
        ["train_meta.py", "--import", "docs.examples.add_action", "--action", "square",
         "--trajectories", "2"],
    ],
    ids=["a method", "a distribution of tasks", "an action that m2 cannot propose for"],
)  # fmt: skip
def test_what_an_example_adds_can_be_named_on_the_command_line(
    words: list[str], tmp_path: Path
) -> None:
    command = [sys.executable, *words, "--out", str(tmp_path / "out")]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=DOCS.parent, check=False
    )
    if "square" in words:  # of another group: refused in one line
        assert run.returncode == 2
        assert "error: expected an action of the group GL" in run.stderr
    else:
        assert run.returncode == 0, run.stderr


def test_the_new_finder_finds_the_heads_of_its_attention() -> None:
    measured = example("add_attention").main()
    assert measured["sites"] == 4
    assert measured["squared norm after"] < 0.9 * measured["squared norm before"]
    assert measured["invariance error"] < 1e-6


@pytest.mark.filterwarnings("default")
def test_balanced_adapters_depend_less_on_how_they_begin() -> None:
    pytest.importorskip("peft")
    losses = example("balance_adapter").main()
    spread = {name: max(own.values()) / min(own.values()) for name, own in losses.items()}
    assert spread["AdamW, balanced"] < 1.5
    assert spread["AdamW"] > 2


@pytest.mark.filterwarnings("default")
def test_equalising_before_torchao_quantises_costs_less() -> None:
    pytest.importorskip("torchao")
    measured = example("equalize_and_quantize").main()
    assert measured["equalised in closed form"] < 0.8 * measured["plain"]
    assert measured["and by 50 steps of a search"] < measured["equalised in closed form"]
    assert measured["invariance error"] < 1e-6
