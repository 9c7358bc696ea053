"""Recipes: the networks and the training that make a learned optimizer, read from a config."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from metaopt.cli.common import parse, take
from metaopt.cli.train import build_parser
from metaopt.errors import UserError, shown, unknown
from metaopt.learned.spec import MetaOptimizerSpec
from metaopt.storage import is_file, user_path
from metaopt.training.spec import TrainingSpec

CONFIGS = Path(__file__).parents[2] / "configs"
"""The configs of the repository; an installed package has none."""


@dataclass(frozen=True)
class Recipe:
    """What makes a learned optimizer, together with a seed: its networks and their training.

    Attributes:
        networks: what the networks m1 and m2 are.
        training: how they are trained, with the seed.
    """

    networks: MetaOptimizerSpec
    training: TrainingSpec

    def with_seed(self, seed: int) -> Recipe:
        """Return the same recipe with another meta-seed."""
        return replace(self, training=replace(self.training, seed=seed))

    def with_budget(self, trajectories: int) -> Recipe:
        """Return the same recipe with another budget, of 20 validations if it is longer."""
        every = max(self.training.validation_every, trajectories // 20)
        training = replace(self.training, trajectories=trajectories, validation_every=every)
        return replace(self, training=training)


def load_recipe(source: str | Path) -> Recipe:
    """Return the recipe of a config, with the defaults of the command line.

    Args:
        source: the path of a YAML file, or a name in the repository's folder ``configs``, such as
            "lstm_update_tele" or "paper/lstm_update".

    Raises:
        UserError: if there is no such config, or it is no config of a training.

    Example:
        >>> load_recipe("lstm_layerwise_v1").networks.update_config
        LayerwiseConfig(hidden=16, layers=1)
    """
    path = user_path(source) if str(source).endswith(".yaml") else CONFIGS / f"{source}.yaml"
    if not is_file(path):
        known = "the path of a YAML config, or one"
        raise UserError(unknown(known, str(source), recipe_names()))
    values = parse(build_parser, ["--config", str(path)])
    if values.init_from:
        raise UserError(
            f"expected a recipe, which begins with fresh networks, got init_from "
            f"{shown(values.init_from)} in {shown(str(source))}: leave it out"
        )
    return Recipe(take(MetaOptimizerSpec, values), take(TrainingSpec, values))


def recipe_names() -> list[str]:
    """Return the names of the repository's configs of trainings."""
    names = (str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.rglob("*.yaml"))
    return sorted(name for name in names if name != "demo")
