"""How a meta-optimizer is trained: schedules, and what is refused."""

import math

import pytest

from metaopt import UserError
from metaopt.learned.meta_optimizer import MetaOptimizerSpec
from metaopt.training.spec import TrainingSpec, constant, cosine
from metaopt.training.trainer import Trainer


def test_cosine_goes_from_the_rate_to_the_final_rate_and_constant_stays():
    assert cosine(3e-3, 1e-5, 0.0) == pytest.approx(3e-3)
    assert cosine(3e-3, 1e-5, 0.5) == pytest.approx((3e-3 + 1e-5) / 2)
    assert cosine(3e-3, 1e-5, 1.0) == pytest.approx(1e-5)
    rates = [cosine(3e-3, 1e-5, i / 10) for i in range(11)]
    assert rates == sorted(rates, reverse=True)
    assert {constant(3e-3, 1e-5, i / 10) for i in range(11)} == {3e-3}


BAD_SPECS = [
    {"trajectories": 0}, {"window": 0}, {"widths": ()}, {"widths": (0,)}, {"validation_at": ()},
    {"learning_rate_update": 0.0}, {"learning_rate_element": math.inf}, {"clip": -1.0},
    {"clip": math.nan}, {"schedule": "nope"}, {"meta_loss": "nope"}, {"loss": "nope"},
    {"dtype": "nope"}, {"slopes": (0.1, 0.0)}, {"slopes": ()}, {"depths": (2, 1)},
    {"distributions": ("nope",)}, {"seed": -1}, {"log_floor": -1.0}, {"max_skips": 0},
    {"estimator": "nope"}, {"pes_sigma": 0.0}, {"pes_sigma": math.nan}, {"pes_pairs": 0},
]  # fmt: skip


@pytest.mark.parametrize("fields", BAD_SPECS, ids=str)
def test_bad_specs_raise_a_user_error_of_one_line(fields):
    with pytest.raises(UserError, match=r"^expected .*, got .*$"):
        TrainingSpec(**fields)


def test_flat_networks_are_refused_before_training_where_sizes_differ():
    with pytest.raises(UserError, match="flat_widths"):
        Trainer(MetaOptimizerSpec(update="flat", element="none"), TrainingSpec(widths=(8,)))
