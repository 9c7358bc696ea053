"""What a spec of a meta-optimizer refuses."""

import math

import pytest

from metaopt import UserError
from metaopt.learned.meta_optimizer import MetaOptimizer, MetaOptimizerSpec

BAD_SPECS = [
    {"update": "nope"}, {"element": "nope"}, {"action": "nope"}, {"action": "rescaling"},
    {"action": "pre_activation", "damping": -1.0}, {"exponential": "nope"}, {"hidden": 0},
    {"inputs": ()}, {"inputs": ("nope",)}, {"element_size": 0.0}, {"bound": 33.0},
    {"layers": 0}, {"heads": ("free", "nope")}, {"heads": ()}, {"features": ("balance", "nope")},
    {"features": ()}, {"bound": 0.0}, {"bound": math.nan}, {"gate": -1.0},
    {"flat_widths": (3, 0, 3)},
]  # fmt: skip


@pytest.mark.parametrize("fields", BAD_SPECS, ids=str)
def test_bad_specs_raise_a_user_error_of_one_line(fields):
    with pytest.raises(UserError, match=r"^expected .*, got .*$"):
        MetaOptimizer(MetaOptimizerSpec(**fields))
