"""Fields of a training that could have no effect are refused before anything is written."""

from __future__ import annotations

import pytest
from training_cases import command

from metaopt import UserError
from metaopt.training.effects import check_effects
from metaopt.training.spec import TrainingSpec

STAGGERED = {"estimator": "pes", "pes_staggered": True}

WITHOUT = [
    ({"problems": "task", "shortest": 101}, "expected shortest of at most the 100 steps"),
    ({"shortest": 5}, "expected shortest=0 for problems='regression'"),
    ({"recompute": 6}, "expected recompute below the 6 steps of a window, got 6"),
    ({"recompute": 4, "steps": 4}, "expected recompute below the 4 steps of a window, got 4"),
    ({"estimator": "pes", "recompute": 4}, "expected fields of the estimator 'pes', got recompute"),
    ({"pes_sigma": 0.1}, "expected fields of the estimator 'truncated', got pes_sigma=0.1"),
    ({"estimator": "first_order", "pes_staggered": True}, "expected fields of the estimator 'fi"),
    ({**STAGGERED, "steps": 6}, "expected two windows and two tasks or more .* got one window"),
    ({**STAGGERED, "problems": "task", "batch_size": 1}, ".* got one task in each part"),
    ({**STAGGERED, "problems": "networks", "trajectories": 1}, ".* got one task in each part"),
    ({**STAGGERED, "problems": "minibatches", "micro_batch": 1}, ".* got one task in each part"),
    ({**STAGGERED, "widths": (20,), "depths": (2,), "batch_size": 1}, ".* one task in each part"),
]  # fmt: skip

WITH = [
    {"problems": "task", "shortest": 100},
    {"problems": "task", "shortest": 1, **STAGGERED},  # some trajectories have one window
    {"recompute": 5},
    {**STAGGERED, "steps": 7, "problems": "task", "batch_size": 2},
    {**STAGGERED, "problems": "minibatches", "micro_batch": 2},
    {**STAGGERED, "batch_size": 1},  # of narrow tasks a batch has several
]


@pytest.mark.parametrize(("fields", "line"), WITHOUT, ids=str)
def test_a_field_that_has_no_effect_is_refused(fields, line):
    with pytest.raises(UserError, match=line):
        check_effects(TrainingSpec(**fields))


@pytest.mark.parametrize("fields", WITH, ids=str)
def test_a_field_that_can_have_an_effect_is_taken(fields):
    check_effects(TrainingSpec(**fields))


def test_the_command_ends_with_code_2_and_writes_nothing(tmp_path, capsys):
    out = tmp_path / "run"
    assert command(out, recompute=3) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: expected recompute below the 3 steps of a window, got 3")
    assert not out.exists()
