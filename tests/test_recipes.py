"""Recipes are read from the configs, by the parser of the command line."""

import pytest
import yaml

from metaopt import UserError
from metaopt.cli.recipes import CONFIGS, load_recipe, recipe_names
from metaopt.learned.spec import MetaOptimizerSpec
from metaopt.training.spec import TrainingSpec
from metaopt.training.trainer import Trainer


def test_what_a_config_leaves_out_is_the_default():
    recipe = load_recipe("lstm_update_tele_v1")
    assert recipe.networks == MetaOptimizerSpec()
    assert recipe.training == TrainingSpec()


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_says_what_its_config_says_and_can_be_trained(name):
    recipe = load_recipe(name)
    said = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    assert said.pop("out").startswith("runs/")
    flat = recipe.networks.as_dict() | recipe.training.as_dict()
    assert {key: flat[key] for key in said} == {
        key: float(value) if isinstance(flat[key], float) else value for key, value in said.items()
    }
    assert not Trainer(recipe.networks, recipe.training).finished


def test_a_path_is_a_recipe_too(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("hidden: 7\nwidths: [5]\n")
    for source in (path, str(path)):
        recipe = load_recipe(source)
        assert (recipe.networks.hidden, recipe.training.widths) == (7, (5,))


@pytest.mark.parametrize("source", ["nonsense", "nonsense.yaml", "paper", "../README"])
def test_a_recipe_that_is_not_there_is_named_with_those_that_are(source):
    with pytest.raises(UserError, match="lstm_update_tele") as caught:
        load_recipe(source)
    assert repr(source) in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_config_of_an_evaluation_is_no_recipe(tmp_path):
    (tmp_path / "mine.yaml").write_text("methods: gd\n")
    with pytest.raises(UserError, match="methods"):
        load_recipe(tmp_path / "mine.yaml")


def test_a_budget_changes_the_trajectories_and_keeps_the_number_of_validations():
    recipe = load_recipe("lstm_update_tele_v1").with_budget(2800).with_seed(3)
    assert recipe.training.trajectories == 2800
    assert recipe.training.validation_every == 140
    assert recipe.training.seed == 3
    assert recipe.networks == load_recipe("lstm_update_tele_v1").networks
