"""What a spec of a meta-optimizer refuses."""

import math

import pytest

from metaopt import UserError
from metaopt.learned.checkpoint import load_meta_optimizer, save_meta_optimizer
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


@pytest.mark.parametrize(
    "fields",
    [
        {"element": "none", "features": ()},
        {"element": "whitening", "features": ("nope",)},
        {"update": "layerwise", "element": "none", "heads": (), "inputs": (), "features": ()},
    ],
    ids=str,
)
def test_lists_of_names_that_no_rule_uses_may_stand_in_a_checkpoint(fields, tmp_path):
    path = tmp_path / "unused.safetensors"
    save_meta_optimizer(path, MetaOptimizer(MetaOptimizerSpec(hidden=4, **fields)), {})
    spec = load_meta_optimizer(path).spec
    assert {name: getattr(spec, name) for name in fields} == fields
