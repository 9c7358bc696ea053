"""Appendix G.1 in a size that takes seconds: buffers after a teleport, and AdaGrad's own norm."""

import json
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from image_study_cases import TORCH
from torch.nn import functional

from metaopt.symmetry.objectives import MetricNorm, gradient_norm
from metaopt.symmetry.search import GradientAscent
from metaopt.tasks import first_seeds
from studies.optimizers import buffer_policies
from studies.optimizers.buffer_policies import (
    GUARDED,
    PAPER,
    STUDIES,
    best_rate,
    buffer_study,
    losses,
    problems,
)
from studies.searches.fixed_ascent import FixedAscent

SEEDS = (3, 0, 7)
EPOCHS = 8
RATES = (1e-3, 1e-2)
SEEN = []


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(buffer_policies, "EPOCHS", EPOCHS)
    monkeypatch.setattr(buffer_policies, "SHOWN", (5, 6, 7, EPOCHS))
    monkeypatch.setattr(buffer_policies, "RATES", RATES)


@dataclass(frozen=True)
class Watched(GradientAscent):
    """Remembers what it climbs."""

    def __call__(self, orbit, parameters, loss):
        SEEN.append((self.objective, [p.clone() for p in parameters]))
        return super().__call__(orbit, parameters, loss)


def drawn(seed):
    """W1, W2, W3, X, Y of one problem."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((6, 5), (7, 6), (8, 7), (5, 4), (8, 4))
    return [torch.rand(shape, generator=generator) for shape in shapes]


def plain(base, rate, seed, epochs=EPOCHS):
    """(losses, parameters, sum of squared gradients) of training by hand, one problem alone."""
    *weights, x, y = drawn(seed)
    weights = [w.requires_grad_() for w in weights]
    optimizer = TORCH[base](weights, lr=rate)
    curve, squares = [], [torch.zeros_like(w) for w in weights]
    for epoch in range(epochs + 1):
        first, second, third = weights
        hidden = functional.leaky_relu(second @ functional.leaky_relu(first @ x, 0.1), 0.1)
        loss = torch.linalg.matrix_norm(y - third @ hidden)
        curve.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        squares = [s + w.grad.square() for s, w in zip(squares, weights, strict=True)]
        if epoch < epochs:
            optimizer.step()
    return curve, weights, squares


# The problems, and runs without a teleport.


def test_the_problems_are_those_of_the_seeds():
    problem = problems(SEEDS)
    found = [*problem.parameters(), problem.x, problem.y]
    for index, seed in enumerate(SEEDS):
        for got, wanted in zip(found, drawn(seed), strict=True):
            assert torch.equal(got[index], wanted)
            assert 0 <= got.min() <= got.max() < 1
    wanted = [plain("sgd", 0.1, seed)[0][0] for seed in SEEDS]
    torch.testing.assert_close(problem().tolist(), wanted, rtol=1e-5, atol=0)


@pytest.mark.parametrize("base", STUDIES)
def test_without_a_teleport_it_is_the_plain_optimizer(base):
    curves = losses(base, 1e-2, SEEDS)
    assert curves.shape == (EPOCHS + 1, len(SEEDS))
    for index, seed in enumerate(SEEDS):
        np.testing.assert_allclose(curves[:, index], plain(base, 1e-2, seed)[0], rtol=1e-4)
    assert (curves[-1] < curves[0]).all()


@pytest.mark.parametrize("base", STUDIES)
def test_the_rate_is_the_best_on_validation_problems(base, monkeypatch):
    rates = (1e30, 1e-4, 1e-2, 1.0)
    monkeypatch.setattr(buffer_policies, "RATES", rates)
    ends = {
        rate: np.mean([plain(base, rate, seed)[0][-1] for seed in first_seeds("validation", 3)])
        for rate in rates[1:]
    }
    assert best_rate(base, 3) == min(ends, key=ends.get)


# The teleport.


SEARCHES = {"paper": PAPER["2"], "guarded": GUARDED}


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
@pytest.mark.parametrize(("base", "policies"), [
    ("momentum", ("keep", "reset", "transport")), ("adagrad", ("keep", "reset", "transport")),
])  # fmt: skip
def test_policies_part_after_the_teleport_and_not_before(base, policies, search):
    """Eq. 79 is exact here, so that the loss of the teleport's epoch stays as well."""
    curves = {policy: losses(base, 1e-2, SEEDS, search, policy) for policy in policies}
    without = losses(base, 1e-2, SEEDS)
    for curve in curves.values():
        assert np.array_equal(curve[:5], without[:5])
        np.testing.assert_allclose(curve[5], without[5], rtol=1e-3)
        assert np.array_equal(curve[5], curves["keep"][5])
        assert (curve[6] != without[6]).all()
        assert curve.shape == without.shape
    for one, other in (("keep", "reset"), ("keep", "transport"), ("reset", "transport")):
        assert (curves[one][6] != curves[other][6]).all()


def test_a_reset_after_the_teleport_is_a_new_optimizer():
    """A search so small that it moves nothing leaves the reset alone."""
    still = FixedAscent(1, 1e-30)
    curve = losses("adagrad", 1e-2, (0,), still, "reset")[:, 0]
    kept = losses("adagrad", 1e-2, (0,), still, "keep")[:, 0]
    np.testing.assert_allclose(kept, plain("adagrad", 1e-2, 0)[0], rtol=1e-4)
    _, weights, _ = plain("adagrad", 1e-2, 0, epochs=5)
    *_, x, y = drawn(0)
    optimizer = torch.optim.Adagrad(weights, lr=1e-2)
    for epoch in range(5, EPOCHS + 1):
        first, second, third = weights
        hidden = functional.leaky_relu(second @ functional.leaky_relu(first @ x, 0.1), 0.1)
        loss = torch.linalg.matrix_norm(y - third @ hidden)
        assert loss.item() == pytest.approx(curve[epoch], rel=1e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_the_metric_is_that_of_the_step_to_come():
    SEEN.clear()
    losses("adagrad", 1e-2, SEEDS, Watched(1, 0.1), metric=True)
    ((objective, start),) = SEEN
    assert isinstance(objective, MetricNorm)
    for index, seed in enumerate(SEEDS):
        _, weights, squares = plain("adagrad", 1e-2, seed, epochs=5)
        for got, wanted in zip(start, weights, strict=True):
            torch.testing.assert_close(got[index], wanted.detach(), rtol=1e-4, atol=1e-5)
        for got, total in zip(objective.metric, squares, strict=True):
            torch.testing.assert_close(got[index], 1 / (total.sqrt() + 1e-10), rtol=1e-3, atol=0)


def test_without_the_metric_the_gradient_norm_is_climbed():
    SEEN.clear()
    losses("adagrad", 1e-2, SEEDS, Watched(1, 0.1))
    assert [objective for objective, _ in SEEN] == [gradient_norm]


def test_the_variants_are_what_their_names_say(monkeypatch):
    calls = []

    def spied(base, rate, seeds, search=None, buffers="keep", metric=False):
        calls.append((base, search, buffers, metric))
        return np.ones((EPOCHS + 1, len(seeds)))

    monkeypatch.setattr(buffer_policies, "losses", spied)
    for name, study in STUDIES.items():
        calls.clear()
        for title, (base, search, buffers, metric) in zip(study(0.1, SEEDS), calls, strict=True):
            assert base == name
            if title == "no teleport":
                assert search is None
                continue
            norm = title[-1] if name == "adagrad" else "2"
            assert search == (PAPER[norm] if title.startswith("paper") else GUARDED)
            assert metric == (norm == "A")
            assert buffers == (title.split(", ")[1] if name == "momentum" else "keep")
        assert len(calls) == {"momentum": 7, "adagrad": 5}[name]


# The study.


@pytest.mark.parametrize("name", STUDIES)
def test_the_study_leaves_a_table_a_picture_a_rate_and_all_curves(name, tmp_path, monkeypatch):
    monkeypatch.setattr(buffer_policies, "GUARDED", replace(GUARDED, iterations=2))
    table = buffer_study(tmp_path / "out", name, 2)
    tuned = best_rate(name, 8)
    rates = [f"{rate:g}" for rate in (tuned, tuned / 10)]
    pictures = {f"{name}-{rate}.png" for rate in rates}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "tables", f"{name}.json", *pictures
    }  # fmt: skip
    for picture in pictures:
        assert (tmp_path / "out" / picture).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    facts = json.loads((tmp_path / "out" / f"{name}.json").read_text())
    assert facts["epochs"] == EPOCHS
    assert list(facts["losses"]) == rates
    assert (tmp_path / "out" / "tables" / f"{name}.md").read_text() == table
    heading, _, *lines = (
        [c.strip().replace(r"\|", "|") for c in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in table.splitlines()
    )
    assert {len(line) for line in lines} == {len(heading)}
    rows = {(line[0], line[1]): line[2:] for line in lines}
    variants = STUDIES[name](tuned, first_seeds("test", 2))
    assert list(rows) == [(rate, variant) for rate in rates for variant in variants]
    for rate in rates:
        without = np.array(facts["losses"][rate]["no teleport"])
        for variant in variants:
            curves = np.array(facts["losses"][rate][variant])
            assert curves.shape == (2, EPOCHS + 1)
            assert np.array_equal(curves[:, :5], without[:, :5])
            *means, worst, ratio, lower = rows[rate, variant]
            expected = np.sqrt(curves[0] * curves[1])[[5, 6, 7, 8]]
            np.testing.assert_allclose([float(m) for m in means], expected, rtol=1e-3)
            assert float(worst) == pytest.approx(curves[:, -1].max(), rel=1e-3)
            ends = curves[:, -1] / without[:, -1]
            assert float(ratio) == pytest.approx(np.sqrt(ends.prod()), rel=1e-2)
            assert lower == f"{(ends < 1).sum()} of 2"
