"""Measures and problems on hostile numbers: numbers, or one line of complaint."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from fuzz_cases import CAGE, TEXTS, attempt, fuzzed
from hypothesis import example, given
from hypothesis import strategies as st
from test_fuzz_optimizers import ENTRIES, LOSSES, batches, like, models

from metaopt.measures import hessian, network_curvature, sharpness
from metaopt.tasks import MinibatchFamily, Regression, RegressionFamily, check_seeds, first_seeds
from studies.functions.quadratic import Quadratic, random_quadratic
from studies.functions.skewed import random_skewed

counts = st.integers(-2, 5)
displacements = st.lists(st.floats() | st.sampled_from((0.0, 1e308, 1e-320)), max_size=3)
huge = st.integers(-2, 4) | st.sampled_from((10**12, 2**31, 2**62, 10**30))


@fuzzed(50, 800)
@given(models(), batches(), st.sampled_from(LOSSES), displacements, counts)
def test_sharpness(model: Any, some: Any, loss_fn: Any, at: list[float], directions: int) -> None:
    x, y = like(model, some[0])
    generator = torch.Generator().manual_seed(0)
    attempt(lambda: sharpness(model, loss_fn, x, y, generator, at, directions))


@fuzzed(50, 800)
@given(models(), batches(), st.sampled_from(LOSSES), counts, st.floats(), st.none() | counts)
def test_hessian(
    model: Any, some: Any, loss_fn: Any, count: int, threshold: float, most: int | None
) -> None:
    x, y = like(model, some[0])
    for ask in (
        lambda h: h.largest(count),
        lambda h: h.count_above(threshold, at_most=most),
        lambda h: h.log_product(count),
    ):
        attempt(lambda ask=ask: ask(hessian(model, loss_fn, x, y)))


@fuzzed(50, 800)
@given(models(), batches(), counts, st.sampled_from(("post_activation", "pre_activation", *TEXTS)))
def test_curvature(model: Any, some: Any, curves: int, action: str) -> None:
    x, _ = like(model, some[0])
    generator = torch.Generator().manual_seed(0)
    attempt(lambda: network_curvature(model, x, generator, curves, action))


def of_fields(family: type[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Values of the types that the fields have."""
    kinds = {int: huge, float: st.floats() | st.just(1e-320), bool: st.booleans()}
    kinds[str] = st.sampled_from(("uniform", "normal", "norm", "float64", "regression", *TEXTS))
    optional = {f.name: kinds[type(f.default)] for f in fields(family)}
    return st.fixed_dictionaries({}, optional=optional)


@fuzzed(50, 800)
@given(of_fields(RegressionFamily), st.lists(st.integers(-1, 5) | st.just(2**63), max_size=2))
@example({}, [-1])
@example({}, [2**64])
@example({"slope": 1e-320}, [0])
@example({"slope": 1e-320, "dtype": "float64"}, [0])
@example({"slope": 1e300}, [0])
def test_problems_of_regression(chosen: dict[str, Any], seeds: list[int]) -> None:
    tiny = {"samples": 2, "input": 2, "hidden": 2, "output": 2}
    problem = attempt(lambda: RegressionFamily(**{**tiny, **chosen}).sample(seeds)).value
    if problem is not None:
        assert problem().shape == (len(seeds),)


@fuzzed(50, 800)
@given(of_fields(MinibatchFamily), st.lists(st.integers(0, 5), max_size=2))
def test_problems_on_minibatches(chosen: dict[str, Any], seeds: list[int]) -> None:
    tiny = {"input": 2, "hidden": 2, "samples": 4, "minibatch": 2}
    problem = attempt(lambda: MinibatchFamily(**{**tiny, **chosen}).sample(seeds)).value
    if problem is not None:
        assert problem(3).shape == (len(seeds),)


@fuzzed(60, 500)
@given(st.lists(huge, max_size=3), st.sampled_from(("test", "validation")), huge, huge)
@example([2**63], "training", 0, 10**30)
def test_seeds(seeds: list[int], role: str, count: int, offset: int) -> None:
    attempt(lambda: check_seeds(seeds, role))
    attempt(lambda: first_seeds(role, count, offset))


@st.composite
def matrices(draw: st.DrawFn, rows: int | None = None) -> torch.Tensor:
    shape = draw(st.integers(0, 3)) if rows is None else rows, draw(st.integers(0, 3))
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 3))))
    if matrix.numel() and draw(st.booleans()):
        matrix.view(-1)[0] = draw(st.sampled_from(ENTRIES))
    return matrix.double()


@fuzzed(60, 400)
@given(matrices(), st.integers(-2, 8), st.floats())
def test_functions(matrix: torch.Tensor, n: int, condition: float) -> None:
    generator = torch.Generator().manual_seed(0)
    if matrix.shape[0] == matrix.shape[1]:
        attempt(lambda: Quadratic(matrix @ matrix.mT, torch.zeros(len(matrix))))
        attempt(lambda: Quadratic(matrix, torch.zeros(len(matrix))))
    attempt(lambda: random_quadratic(n, condition, generator))
    attempt(lambda: random_skewed(n, condition, generator))


@fuzzed(40, 400)
@given(st.sampled_from(ENTRIES), st.sampled_from(("W1", "W2", "X", "Y")))
def test_data_of_a_regression(entry: float, where: str) -> None:
    parts = {"W1": torch.ones(1, 2, 2), "W2": torch.ones(1, 2, 2), "X": torch.ones(1, 2, 2)}
    parts["Y"] = torch.zeros(1, 2, 2)
    parts[where][0, 0, 0] = entry
    weights = [parts["W1"], parts["W2"]]
    problem = attempt(lambda: Regression(weights, parts["X"], parts["Y"])).value
    assert (problem is None) == (not torch.tensor(entry).isfinite())
    with CAGE.watch():
        assert problem is None or problem().shape == (1,)
