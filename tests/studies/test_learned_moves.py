"""The study of a learned group element: its moves, its controls, its training, and resuming."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

import metaopt
from metaopt.symmetry.network_sites import Symmetries
from studies.learned_moves import __main__ as study
from studies.learned_moves import characters, measured, runs, training
from studies.learned_moves.families import COUNT, FIRST, families
from studies.learned_moves.move import (
    BOUND,
    FEATURES,
    Averages,
    Constant,
    Moment,
    Network,
    Random,
    Several,
    Shuffled,
    Tensors,
    moved,
)
from studies.learned_moves.runs import Setting, trained
from studies.learned_moves.tasks import (
    Family,
    Stack,
    adapted,
    attention,
    cross_entropy,
    relative_error,
)

pytestmark = pytest.mark.studies

ADAPTERS = Family("adapters", "", partial(adapted, widths=(5, 7, 3), rank=2), relative_error)
ATTENTION = Family("attention", "", partial(attention, heads=2, of_head=3, length=5), cross_entropy)


def network(seed: int, copies: int = 1) -> Network:
    generator = torch.Generator().manual_seed(seed)
    return Network(torch.randn(copies, Network.size(), generator=generator))


@pytest.mark.parametrize("family", [ADAPTERS, ATTENTION], ids=lambda family: family.kind)
def test_a_move_keeps_each_loss_and_takes_gradients_along(family: Family) -> None:
    stack = family.stack([3, 4])
    generator = torch.Generator().manual_seed(0)
    fixed = {name: t.double() for name, t in stack.tensors(False).items()}
    weights = {
        name: (t.double() + 0.1 * torch.randn(t.shape, generator=generator)).requires_grad_()
        for name, t in stack.tensors(True).items()
    }
    x, y = next(stack.batches(1))
    batch = (x.double(), y.double()) if x.is_floating_point() else (x, y)

    def losses_and_gradients(weights: Tensors) -> tuple[Tensor, Tensors]:
        losses = stack.losses(weights, fixed, batch)
        gradients = torch.autograd.grad(losses.sum(), list(weights.values()))
        return losses.detach(), dict(zip(weights, gradients, strict=True))

    before, gradients = losses_and_gradients(weights)
    squares = {name: g.square() for name, g in gradients.items()}
    averages = Averages(gradients, gradients, squares)
    with torch.no_grad():
        after, along = moved(family.orbit, weights, averages, network(1, 2), Moment(0.3, 1e-2))
    changed = [name for name in weights if not torch.allclose(weights[name], after[name])]
    assert len(changed) >= 3
    losses, expected = losses_and_gradients({n: t.requires_grad_() for n, t in after.items()})
    torch.testing.assert_close(losses, before, rtol=1e-11, atol=1e-11)
    for name in expected:
        torch.testing.assert_close(along.gradients[name], expected[name], rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(along.first[name], expected[name], rtol=1e-8, atol=1e-10)
        assert (along.second[name] >= 0).all()


def test_no_t_is_the_balance_of_the_teleporting_optimizer() -> None:
    stack, setting = ADAPTERS.stack([5, 6]), Setting(2e-2, 13)
    found = trained(stack, setting, Constant())[0, 0]
    alone = []
    for copy, seed in zip(stack.copies, stack.seeds, strict=True):
        model = ADAPTERS.draw(seed).model
        trainable = [p for p in model.parameters() if p.requires_grad]
        base = torch.optim.AdamW(trainable, setting.rate, weight_decay=0.0)
        sites = Symmetries(tuple(site for site, _ in ADAPTERS.orbit.acting))
        optimizer = metaopt.TeleportingOptimizer(
            base, model, search="balance", sites=sites,
            schedule=lambda step: step == 1 or step == 10,
        )  # fmt: skip
        for step, (x, y) in enumerate(islice(copy.batches(seed, 8), setting.steps)):
            base.param_groups[0]["lr"] = setting.rate * (1 - step / setting.steps)
            optimizer.zero_grad()
            torch.autograd.backward(relative_error(model(x), y))
            optimizer.step()
        assert optimizer.made == 2
        x, y = next(copy.held_out(seed + 1, 64))
        alone.append(float(relative_error(model(x), y).detach()))
    assert found.tolist() == pytest.approx(alone, rel=1e-4)


def test_copies_do_not_see_each_other() -> None:
    setting = Setting(2e-2, 12)
    together = trained(ADAPTERS.stack([5, 6]), setting, Several([network(1), network(2)]), 2)[0]
    for place, seed in enumerate([5, 6]):
        for own in (1, 2):
            alone = trained(ADAPTERS.stack([seed]), setting, network(own))[0, 0, 0]
            torch.testing.assert_close(together[own - 1, place], alone, rtol=1e-4, atol=0)


def test_averages_that_stay_or_are_reset_end_elsewhere() -> None:
    stack = ADAPTERS.stack([5])
    ends = {
        float(trained(stack, Setting(2e-2, 25, buffers), Constant(0.5)))
        for buffers in ("transport", "keep", "reset")
    }
    assert len(ends) == 3


def test_a_loss_that_is_not_finite_is_the_largest_and_stops_nobody() -> None:
    found = trained(ADAPTERS.stack([5]), Setting(1e30, 12), network(0))
    assert found.flatten().tolist() == [runs.LARGEST]


def test_a_network_is_bounded_and_starts_at_the_balance() -> None:
    features = torch.randn(3, 2, 4, FEATURES, dtype=torch.float64) * 3
    basis = torch.eye(4, dtype=torch.float64).expand(3, 2, 4, 4)
    t, _ = Network(training.start(0))(features, basis)
    assert torch.equal(t, torch.zeros(3, 2, 4, dtype=torch.float64))
    several = Network(100 * network(0, 3).theta)
    t, along = several(features, basis)
    assert t.abs().max() <= BOUND
    assert along is basis
    for copy in range(3):
        own, _ = Network(several.theta[copy])(features[copy : copy + 1], basis[:1])
        torch.testing.assert_close(t[copy : copy + 1], own)
    torch.testing.assert_close(t.flip(-1), several(features.flip(-2), basis)[0])


def test_controls_are_of_the_size_that_was_asked_for() -> None:
    features = torch.randn(50, 4, FEATURES, dtype=torch.float64)
    basis = torch.eye(4, dtype=torch.float64).expand(50, 4, 4)
    generator = torch.Generator().manual_seed(0)
    t, along = Random(0.7, generator)(features, basis)
    assert float(t.square().mean().sqrt()) == pytest.approx(0.7, rel=0.15)
    torch.testing.assert_close(along @ along.mT, basis)
    own = network(3)
    shuffled, _ = Shuffled(own, generator)(features, basis)
    t, _ = own(features, basis)
    assert not torch.allclose(shuffled, t)
    torch.testing.assert_close(shuffled.flatten().sort().values, t.flatten().sort().values)


def test_the_strategy_goes_down_and_on_where_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def losses(
        stack: Stack, setting: Setting, propose: Network, times: int, at: Sequence[float]
    ) -> Tensor:
        theta = propose.theta.reshape(times, -1, propose.theta.shape[-1])
        return (theta - 0.2).square().mean(dim=-1).exp().expand(len(at), -1, -1)

    monkeypatch.setattr(training, "trained", losses)
    strategy = training.Strategy(seeds=2, generations=60, tasks=(("adapters", 2),), snapshots=3)
    rates = {"adapters": 1e-2}
    whole = training.taught(tmp_path / "a", [ADAPTERS], rates, strategy)
    assert whole.shape == (3, 2, Network.size())
    begun = torch.stack([training.start(seed) for seed in range(2)])
    distances = [(theta - 0.2).square().mean(dim=-1) for theta in (begun, *whole)]
    assert (distances[-1] < 0.5 * distances[0]).all()

    class Killed(Exception):
        pass

    count = 0

    def killed(
        stack: Stack, setting: Setting, propose: Network, times: int, at: Sequence[float]
    ) -> Tensor:
        nonlocal count
        count += 1
        if count > 33:
            raise Killed
        return losses(stack, setting, propose, times, at)

    monkeypatch.setattr(training, "trained", killed)
    with pytest.raises(Killed):
        training.taught(tmp_path / "b", [ADAPTERS], rates, strategy)
    monkeypatch.setattr(training, "trained", losses)
    training.taught(tmp_path / "b", [ADAPTERS], rates, strategy)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_roles_share_no_seed_and_texts_are_held_out(tmp_path: Path) -> None:
    copy = characters.tuning(4, "validation", 3, tmp_path / "base", 1)
    x, y = next(copy.batches(0, 5))
    z, _ = next(copy.held_out(0, 5))
    assert x.shape == y.shape == (5, characters.LENGTH)
    assert not torch.equal(x, z)
    before = cross_entropy(copy.model(x), y)
    base = characters.network()
    base.load_state_dict(characters.pretrained(tmp_path / "base", 1))
    torch.testing.assert_close(before, cross_entropy(base(x), y))
    assert {family.kind for family in families("train", tmp_path)} == {"adapters", "attention"}
    apart = max(COUNT.values())
    assert FIRST["test"] - FIRST["validation"] > apart
    assert FIRST["train"] - FIRST["test"] > apart


def test_a_task_has_a_loss_of_1_before_its_tuning() -> None:
    copy = adapted(2, (5, 7, 3), 2)
    x, y = next(copy.held_out(9, 4096))
    assert float(relative_error(copy.model(x), y).detach()) == pytest.approx(1, rel=0.15)
    trainable = {n.rpartition(".")[2] for n, p in copy.model.named_parameters() if p.requires_grad}
    assert trainable == {"lora_A", "lora_B"}


def test_a_cell_has_the_mean_and_the_ranges_over_tasks_and_seeds() -> None:
    families: list[measured.Losses] = [
        {"balance": [[2.0, 2.0]], "learned": [[1.0, 4.0], [2.0, 8.0]], "none": [[4.0, 4.0]]},
        {"balance": [[1.0]], "learned": [[1.0], [1.0]], "none": [[2.0]]},
    ]
    assert study._cell("none", families) == "2.000 (2.000 to 2.000), 0%"
    mean, first, second = 2 ** (2 / 6), 1.0, 2 ** (2 / 3)
    cell = study._cell("learned", families)
    assert cell.startswith(f"{mean:.3f} (")
    assert cell.endswith(f"; meta-seeds {first:.3f} to {second:.3f}), 17%")


def test_the_study_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = lambda role, folder, steps: [  # noqa: E731
        replace(ADAPTERS, name="a"), replace(ATTENTION, name="b")
    ]  # fmt: skip
    monkeypatch.setattr(study, "families", few)
    monkeypatch.setattr(study, "set_threads", lambda threads: None)
    study.main(["--quick", "--out", str(tmp_path)])
    first = capsys.readouterr().out
    assert first.startswith("| method | adapters | attention |")
    assert "| balance | 1 | 1 |" in first
    assert (tmp_path / "tables" / "learned_moves.md").read_text().strip() == first.strip()

    def refused(*arguments: object, **named: object) -> Tensor:
        raise AssertionError("it was measured before")

    monkeypatch.setattr(measured, "trained", refused)
    monkeypatch.setattr(training, "trained", refused)
    study.main(["--quick", "--out", str(tmp_path)])
    assert capsys.readouterr().out == first
