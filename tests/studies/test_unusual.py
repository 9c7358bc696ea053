"""The unusual problems: what they draw, that they can be learned, the tables, and the command."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from studies.untuned.command import LEARNED
from studies.unusual import networks, report
from studies.unusual.__main__ import QUICK_STEPS, main
from studies.unusual.problems import HELD_OUT, SEEN, UNSEEN, Problem, teacher
from studies.unusual.report import PARTS, RIVALS, tables

PROBLEMS = SEEN | UNSEEN


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_seed_gives_the_same_model_and_batches_and_splits_are_others(name):
    problem, random = PROBLEMS[name], torch.get_rng_state()
    one, same, other = problem.model(1), problem.model(1), problem.model(2)
    assert torch.equal(torch.get_rng_state(), random)
    pairs = list(zip(one.parameters(), same.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert any(
        not torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True)
    )
    first, again, test = (
        next(iter(problem.batches(3, split))) for split in ("train", "train", "test")
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], test[0])
    assert len(list(problem.batches(3, "test"))) == HELD_OUT
    loss = problem.loss(one, first)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None for p in one.parameters() if p.requires_grad)
    with torch.no_grad():
        assert problem.loss(one, test).isfinite()


@pytest.mark.parametrize("name", ["regression", "couplings", "adding", "counts", "sets", "mixture"])
def test_it_can_be_learned(name):
    problem = PROBLEMS[name]
    model = problem.model(0)
    held_out = next(iter(problem.batches(0, "test")))
    before = problem.loss(model, held_out).item()
    adam = torch.optim.Adam(model.parameters(), 3e-3)
    for _, batch in zip(range(100), problem.batches(0, "train"), strict=False):
        adam.zero_grad()
        problem.loss(model, batch).backward()
        adam.step()
    assert problem.loss(model, held_out).item() < before - 0.1 * abs(before)


def test_a_flow_gives_the_density_of_what_it_turns():
    torch.manual_seed(0)
    flow, x = networks.Flow(4, 3).double(), torch.randn(5, 4, dtype=torch.float64)

    def turned(point):
        one, other = point[None].chunk(2, dim=1)
        for coupling in flow.couplings:
            scale, shift = coupling(one).chunk(2, dim=1)
            one, other = other * torch.tanh(scale).exp() + shift, one
        return torch.cat((one, other), dim=1)[0]

    expected = torch.stack(
        [
            turned(point).square().sum() / 2
            - torch.autograd.functional.jacobian(turned, point).det().abs().log()
            for point in x
        ]
    ).mean()
    torch.testing.assert_close(flow(x).double(), expected, rtol=1e-5, atol=1e-6)


def test_a_mixture_has_the_likelihood_of_torchs():
    torch.manual_seed(1)
    model, x, y = networks.Mixture(3), torch.randn(7, 4), torch.randn(7, 1)
    weight, mean, logarithm = model.inner(x).chunk(3, dim=1)
    parts = torch.distributions.Normal(mean, logarithm.exp())
    of = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=weight), parts
    )
    torch.testing.assert_close(model(x, y), -of.log_prob(y.squeeze(1)).mean())


def test_the_equations_hold_for_their_solutions():
    class Poisson(nn.Module):
        def forward(self, x):
            return torch.sin(2 * math.pi * x) / (x * (1 - x))

    class Heat(nn.Module):
        def forward(self, x):
            falls = torch.exp(-(math.pi**2) / 10 * x[:, 1:])
            return torch.sin(math.pi * x[:, :1]) * falls

    for name, solution in (("poisson_equation", Poisson()), ("heat_equation", Heat())):
        problem = PROBLEMS[name]
        batch = next(iter(problem.batches(0, "train")))
        inner = tuple(0.1 + 0.8 * own.double() for own in batch)
        assert problem.loss(solution, inner) < 1e-10
        assert problem.loss(problem.model(0).double(), inner) > 1e-2


def test_the_sides_of_the_heat_equation_are_at_both_ends():
    seen = []

    class Watches(nn.Module):
        def forward(self, x):
            seen.append(x.detach())
            return x[:, :1] * x[:, 1:] + x[:, :1] ** 2

    problem = PROBLEMS["heat_equation"]
    problem.loss(Watches(), next(iter(problem.batches(0, "train"))))
    inner, start, sides = seen
    assert set(sides[:, 0].tolist()) == {0.0, 1.0}
    assert not start[:, 1].any()
    assert inner.min() > 0
    assert inner.max() < 1


def test_a_causal_convolution_sees_none_that_come_later():
    torch.manual_seed(0)
    model, x = networks.Dilated(3, 4), torch.randn(1, 1, 12)
    changed = x.clone()
    changed[..., 8:] += 1

    def said(own):
        found = []
        model.head.register_forward_hook(lambda *args: found.append(args[-1]))
        model(own)
        return found[0]

    one, other = said(x), said(changed)
    torch.testing.assert_close(one[..., :8], other[..., :8])
    assert not torch.allclose(one[..., 8:], other[..., 8:])


def test_the_sines_begin_as_their_source_has_it():
    torch.manual_seed(0)
    model = networks.siren()
    x = 2 * torch.rand(2000, 2) - 1
    with torch.no_grad():
        deviations = [model[: 2 * layer](x).std().item() for layer in (2, 3)]
    assert all(0.6 < own < 0.8 for own in deviations)  # of a sine of any angle: 0.71


def test_a_teacher_is_the_same_each_time():
    x = torch.randn(4, 3)
    assert torch.equal(teacher(3, 2, 7)(x), teacher(3, 2, 7)(x))
    assert not torch.equal(teacher(3, 2, 7)(x), teacher(3, 2, 8)(x))


def made(name, method, level, seed=0, highest=1.0):
    curve = [4.0 - (4.0 - level) * step / (PARTS - 1) for step in range(PARTS)]
    return {
        "network": name, "method": method, "curve": curve, "highest": highest, "seed": seed
    }  # fmt: skip


def test_rivals_are_at_their_best_and_the_halves_apart():
    records = []
    for name, ours in (("easy", 1.0), ("new", 3.0)):
        for own in RIVALS.values():
            records += [
                made(name, method, 2.0 + place, seed)
                for place, method in enumerate(own)
                for seed in (0, 1)
            ]
        records += [made(name, "runs/mine.safetensors", ours, seed, 1.5 - seed) for seed in (0, 1)]
    found = tables(records, {"new"})
    assert list(found) == [
        "unusual", "unusual_seen", "unusual_unseen", "unusual_seen_speedups",
        "unusual_unseen_speedups",
    ]  # fmt: skip
    lines = [line.split(" | ") for line in found["unusual"].splitlines()[2:]]
    assert lines[0] == ["| adamw_cosine", "1.00 (1.00 to 1.00)", "1 of 1", "1.00 (1.00 to 1.00)",
                        "1 of 1 |"]  # fmt: skip
    ours = lines[-1]
    assert ours[0] == "| mine"
    assert float(ours[1].split()[0]) > 1.3
    assert ours[2] == "1 of 1"
    assert 0.4 < float(ours[3].split()[0]) < 0.7
    assert ours[4] == "0 of 1 |"
    seen = found["unusual_seen"].splitlines()[-1].split(" | ")
    assert seen[1].endswith("(0.0001)")
    assert seen[3].startswith("**")
    assert seen[-1] == "1.50 |"
    assert found["unusual_unseen"].splitlines()[-1].split(" | ")[1].startswith("**")


def test_a_run_that_is_lost_is_worse_than_any():
    record = made("easy", "muon@0.01", 2.0)
    record["curve"][5:] = [None] * (PARTS - 5)
    assert report.final([record]) == math.inf
    assert len(report.parts(record)) == PARTS


def test_the_command_runs_goes_on_and_writes_its_tables(tmp_path, capsys):
    arguments = ["--out", str(tmp_path), "--quick", "--methods", LEARNED]
    main(arguments)
    printed = capsys.readouterr().out
    tables = list((tmp_path / "tables").glob("*.md"))
    assert len(tables) == 5
    assert all(path.read_text() in printed for path in tables)
    kept = (tmp_path / "runs.jsonl").read_text()
    assert len(kept.splitlines()) == 4 * 14
    assert f'"steps": {QUICK_STEPS}' in kept
    main(arguments)
    assert (tmp_path / "runs.jsonl").read_text() == kept


def test_problems_have_names_of_their_own():
    assert not SEEN.keys() & UNSEEN.keys()
    assert all(isinstance(problem, Problem) for problem in PROBLEMS.values())
    assert (len(SEEN), len(UNSEEN)) == (23, 17)


def test_too_few_steps_are_refused(tmp_path):
    from metaopt import UserError

    with pytest.raises(UserError, match=f"expected --steps of {PARTS} or more"):
        main(["--out", str(tmp_path), "--steps", "3"])
