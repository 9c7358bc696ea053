"""The sizes of the study of section 5.2: in full, or just enough to see that it runs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from metaopt.cli.recipes import Recipe
from metaopt.evaluation.methods import BASELINES
from studies.learned_teleportation.baselines import RATES

LONG = 2800
TITLES = {
    "lstm_update_tele": "LSTM(update,tele)",
    "lstm_whitened": "the same without m2",
    "lstm_update_tele_v1": "LSTM(update,tele), first",
    "lstm_update": "LSTM(update)",
    "lstm_lr_tele": "LSTM(lr,tele)",
}


@dataclass(frozen=True)
class Scale:
    """The sizes of the study in full."""

    meta_seeds: int = 5
    paper_seeds: int = 1  # 0 leaves the paper's configuration out
    problems: int = 64
    validation: int = 32
    steps: int = 100
    far: int = 500
    patience: int = 300  # steps that baselines have to reach the learned optimizer's loss
    marks: tuple[int, ...] = (30, 100)  # where the learned optimizer's loss is the target
    rates: tuple[float, ...] = RATES
    baselines: tuple[str, ...] = tuple(BASELINES)
    long: int | None = LONG

    @property
    def reported(self) -> tuple[int, ...]:
        """Steps that tables show."""
        return tuple(t for t in (10, 20, 30, 50, 100) if t <= self.steps)

    def recipe(self, recipe: Recipe) -> Recipe:
        """Return the recipe as it is."""
        return recipe


@dataclass(frozen=True)
class Quick(Scale):
    """Sizes just large enough to see that everything runs."""

    meta_seeds: int = 2
    paper_seeds: int = 1
    problems: int = 4
    validation: int = 4
    steps: int = 20
    far: int = 30
    patience: int = 40
    marks: tuple[int, ...] = (10, 20)
    rates: tuple[float, ...] = (3e-4, 0.3)
    baselines: tuple[str, ...] = ("gd", "adam", "lbfgs", "levenberg_marquardt")
    long: int | None = None

    def recipe(self, recipe: Recipe) -> Recipe:
        """Return the recipe with a few trajectories of a few steps."""
        training = replace(
            recipe.training,
            trajectories=2 * recipe.training.batch_size,
            steps=10,
            validation_problems=2,
            validation_every=recipe.training.batch_size,
            validation_at=(5, 10),
        )
        return replace(recipe, training=training)
