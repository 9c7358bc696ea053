"""The recipes of the studies are those of ``configs/``."""

from pathlib import Path

import pytest

from metaopt.cli.common import take
from metaopt.cli.train import build_parser
from metaopt.learned.meta_optimizer import MetaOptimizerSpec
from metaopt.training.spec import TrainingSpec
from studies.recipes import RECIPES

CONFIGS = Path(__file__).parents[2] / "configs"


def test_every_recipe_has_a_config_and_every_config_of_training_a_recipe():
    files = {str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.rglob("*.yaml")} - {
        "demo"
    }
    assert files == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_and_its_config_say_the_same(name):
    values = build_parser().parse_args(["--config", str(CONFIGS / f"{name}.yaml")])
    recipe = RECIPES[name]
    assert take(MetaOptimizerSpec, values) == recipe.networks
    assert take(TrainingSpec, values) == recipe.training


def test_a_budget_changes_the_trajectories_and_keeps_the_number_of_validations():
    recipe = RECIPES["lstm_update_tele"].with_budget(2800).with_seed(3)
    assert recipe.training.trajectories == 2800
    assert recipe.training.validation_every == 140
    assert recipe.training.seed == 3
    assert recipe.networks == RECIPES["lstm_update_tele"].networks
