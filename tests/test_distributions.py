"""The tasks that are trained on: sizes, seeds, and what the fields say."""

import math

import torch

from metaopt.tasks.seeds import TEST, TRAINING, VALIDATION
from metaopt.training.distributions import RegressionTasks

DRAWS = 200


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def families(**fields):
    drawn = generator()
    return [RegressionTasks(**fields).draw_family(drawn) for _ in range(DRAWS)]


def test_every_width_is_drawn_with_as_many_problems_as_keep_the_number_of_weights():
    tasks = RegressionTasks(widths=(10, 20, 28, 40), rectangular=False, depths=(2,))
    drawn = generator()
    problems = [tasks.draw(4, drawn).sample() for _ in range(40)]
    assert {(p.W1.shape[-1], p.batch) for p in problems} == {(10, 16), (20, 4), (28, 2), (40, 1)}


def test_a_batch_has_at_least_one_problem_however_wide():
    assert RegressionTasks(widths=(100,)).draw(4, generator()).sample().batch == 1


def test_square_families_are_square():
    for family in families(rectangular=False):
        assert family.samples == family.input == family.hidden == family.output


def test_rectangular_families_have_all_sizes_and_are_solvable():
    drawn = families(widths=(8, 12, 20))
    assert all(family.samples <= min(family.input, family.hidden) for family in drawn)
    sizes = {(f.input, f.hidden, f.output) for f in drawn}
    assert len(sizes) == 27
    assert any(family.samples < family.input for family in drawn)


def test_depths_slopes_and_distributions_are_drawn_from_those_named():
    drawn = families(
        depths=(2, 3), slopes=(0.1, 0.3), distributions=("uniform", "normal"), widths=(8,)
    )
    seen = {(f.depth, f.slope, f.distribution) for f in drawn}
    assert len(seen) == 8
    for choice in seen:
        count = sum((f.depth, f.slope, f.distribution) == choice for f in drawn)
        assert abs(count - DRAWS / 8) < 5 * math.sqrt(DRAWS / 8)


def test_problems_are_as_the_fields_say():
    tasks = RegressionTasks(loss="norm", slopes=(0.3,), depths=(3,), dtype="float64")
    problem = tasks.draw(4, generator()).sample()
    assert problem.loss == "norm"
    assert problem.depth == 3
    assert problem.chain.activations[0].slope == 0.3
    assert problem.W1.dtype == torch.float64


def test_the_same_generator_draws_the_same_problems_with_training_seeds():
    first, second = (RegressionTasks().draw(400, generator(3)) for _ in range(2))
    assert first == second
    assert torch.equal(first.sample().x, second.sample().x)
    assert len(set(first.seeds)) == len(first.seeds)
    assert all(s in TRAINING and s not in TEST and s not in VALIDATION for s in first.seeds)
