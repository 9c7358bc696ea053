import math

import pytest
import torch

from metaopt import UserError
from metaopt.tasks import (
    PAPER_TEST_SEEDS,
    Regression,
    RegressionFamily,
    check_seeds,
    first_seeds,
)

SIZES = {"samples": 5, "input": 4, "hidden": 3, "output": 2}
SHAPES = {"W1": (3, 4), "W2": (2, 3), "x": (4, 5), "y": (2, 5)}  # in the order drawn


def naive_squared_residual(w1, w2, x, y, slope):
    """||Y - W2 sigma(W1 X)||_F^2 over lists of lists."""
    total = 0.0
    for s in range(len(x[0])):
        z = [sum(w * row[s] for w, row in zip(unit, x, strict=True)) for unit in w1]
        features = [v if v > 0 else slope * v for v in z]
        for unit, row in zip(w2, y, strict=True):
            total += (row[s] - sum(w * f for w, f in zip(unit, features, strict=True))) ** 2
    return total


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("seed", [0, 12345, 10**7])
def test_a_seed_draws_weights_then_data_uniformly_in_a_fixed_order(seed, dtype):
    problem = RegressionFamily(**SIZES, dtype=dtype).sample([seed])
    generator = torch.Generator().manual_seed(seed)
    for name, shape in SHAPES.items():
        expected = torch.rand(shape, generator=generator)  # float32, whatever the dtype asked for
        drawn = getattr(problem, name)
        assert drawn.dtype == getattr(torch, dtype)
        assert torch.equal(drawn[0], expected.to(drawn.dtype))


def test_batching_does_not_change_a_problem():
    family = RegressionFamily(**SIZES, dtype="float64")
    batch, alone = family.sample([3, 7, 5]), family.sample([7])
    for name in SHAPES:
        assert torch.equal(getattr(batch, name)[1], getattr(alone, name)[0])
    assert batch.batch == 3
    torch.testing.assert_close(batch()[1:2], alone(), rtol=1e-14, atol=0)


def test_drawing_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    RegressionFamily(**SIZES).sample([1])
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("slope", [0.1, 0.7])
@pytest.mark.parametrize("loss", ["half_squared", "norm"])
def test_the_loss_equals_the_naive_formula(loss, slope):
    generator = torch.Generator().manual_seed(0)
    data = [
        torch.randn(2, *shape, generator=generator, dtype=torch.float64)
        for shape in SHAPES.values()
    ]
    losses = Regression(data[:2], *data[2:], slope=slope, loss=loss)()
    assert losses.shape == (2,)
    for index in range(2):
        squared = naive_squared_residual(*(t[index].tolist() for t in data), slope)
        expected = math.sqrt(squared) if loss == "norm" else squared / 2
        assert losses[index].item() == pytest.approx(expected, rel=1e-12)


def test_the_family_hands_its_slope_and_loss_on():
    problem = RegressionFamily(**SIZES, slope=0.3, loss="norm").sample([0])
    assert problem.loss == "norm"
    assert problem.chain.activations[0].slope == 0.3


def test_the_chain_computes_what_the_loss_compares_with_y():
    problem = RegressionFamily(**SIZES, dtype="float64").sample([0, 1])
    layers = problem.chain.layers(list(problem.parameters()))
    residual = problem.y - problem.chain.output(layers, problem.x)
    torch.testing.assert_close(0.5 * residual.square().sum((1, 2)), problem())
    assert problem.chain.batch_dims == 1


def test_the_weights_are_copies_of_what_was_given():
    data = [torch.ones(1, *shape) for shape in SHAPES.values()]
    problem = Regression(data[:2], *data[2:])
    with torch.no_grad():
        problem.W1.zero_()
    assert data[0].eq(1).all()


def test_gradient_descent_reproduces_the_papers_released_code():
    assert PAPER_TEST_SEEDS == (0, 12345, 4 * 12345, 9 * 12345, 16 * 12345)
    problem = RegressionFamily().sample(PAPER_TEST_SEEDS)
    optimizer = torch.optim.SGD(problem.parameters(), lr=3e-4)
    means = []
    for _ in range(30):
        optimizer.zero_grad()
        losses = problem()
        means.append(losses.mean().item())
        losses.sum().backward()
        optimizer.step()
    assert means[0] == pytest.approx(477_558.4, rel=1e-6)
    assert means[10] == pytest.approx(2_499, rel=1e-3)
    assert means[29] == pytest.approx(48.81, rel=1e-3)


def test_square_sets_each_size_and_coordinates_counts_weights():
    family = RegressionFamily.square(3, slope=0.2)
    assert (family.samples, family.input, family.hidden, family.output) == (3, 3, 3, 3)
    assert family.slope == 0.2
    assert RegressionFamily(**SIZES).coordinates == 3 * 4 + 2 * 3


@pytest.mark.parametrize("size", [0, -1])
@pytest.mark.parametrize("name", SIZES)
def test_each_size_must_be_positive(name, size):
    with pytest.raises(UserError, match=f"{name} of 1 to .* got {size}:"):
        RegressionFamily(**{**SIZES, name: size})


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"slope": 0.0}, "positive slope"),
        ({"slope": -0.1}, "positive slope"),
        ({"slope": float("nan")}, "positive slope"),
        ({"slope": float("inf")}, "positive slope"),
        ({"loss": "cross_entropy"}, "half_squared, norm, got 'cross_entropy'"),
        ({"dtype": "float16"}, "float32, float64, got 'float16'"),
    ],
)
def test_bad_options_of_a_family_are_refused(option, message):
    with pytest.raises(UserError, match=message):
        RegressionFamily(**SIZES, **option)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("position", range(4))
def test_data_that_are_not_finite_are_refused_by_name(position, value):
    data = [torch.ones(1, *shape) for shape in SHAPES.values()]
    data[position][0, 0, 1] = value
    with pytest.raises(UserError, match=f"infinity in {('W1', 'W2', 'X', 'Y')[position]}"):
        Regression(data[:2], *data[2:])


def test_an_unknown_loss_is_refused_where_data_are_given():
    with pytest.raises(UserError, match="got 'huber'"):
        Regression([torch.ones(1, 1, 1)] * 2, *[torch.ones(1, 1, 1)] * 2, loss="huber")


def test_no_seed_is_no_problem():
    with pytest.raises(UserError, match="at least one problem seed"):
        RegressionFamily(**SIZES).sample([])


@pytest.mark.parametrize(
    ("role", "seeds"),
    [
        ("test", [0, 10**6 - 1]),
        ("validation", [10**6, 2 * 10**6 - 1]),
        ("training", [10**7, 2**63 - 1]),
    ],
)
def test_the_boundaries_of_a_role_belong_to_it(role, seeds):
    assert check_seeds(iter(seeds), role) == seeds


@pytest.mark.parametrize(
    ("role", "seed"),
    [
        ("test", -1),
        ("test", 10**6),
        ("test", 10**7),
        ("validation", 10**6 - 1),
        ("validation", 2 * 10**6),
        ("training", 0),
        ("training", 10**6),
        ("training", 10**7 - 1),
        ("training", 2**63),
    ],
)
def test_a_seed_outside_its_role_is_refused_by_name(role, seed):
    inside = {"test": 1, "validation": 10**6 + 1, "training": 10**7 + 1}[role]
    with pytest.raises(UserError, match=rf"{role} seeds .* got {seed}:"):
        check_seeds([inside, seed], role)


def test_the_papers_seeds_are_test_seeds():
    assert check_seeds(PAPER_TEST_SEEDS, "test") == list(PAPER_TEST_SEEDS)


@pytest.mark.parametrize(
    ("role", "start"), [("test", 0), ("validation", 10**6), ("training", 10**7)]
)
def test_first_seeds_are_consecutive_from_the_offset(role, start):
    assert list(first_seeds(role, 2)) == [start, start + 1]
    assert list(first_seeds(role, 2, offset=3)) == [start + 3, start + 4]


@pytest.mark.parametrize(
    ("role", "count", "offset"),
    [("test", 0, 0), ("test", 2, 10**6 - 1), ("validation", 1, -1), ("validation", 10**6 + 1, 0)],
)
def test_first_seeds_stay_inside_the_role(role, count, offset):
    with pytest.raises(UserError):
        first_seeds(role, count, offset)
