"""One training trajectory of a recipe, as the trainer drives it, with Adam after each window.

All steps are run; the trainer ends a batch where nothing is left to learn.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from metaopt.cli.recipes import Recipe, load_recipe
from metaopt.learned.meta_optimizer import MetaOptimizer
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.tasks import Regression, RegressionFamily
from metaopt.training.meta_loss import MetaLoss
from metaopt.training.unroll import Window

UPDATE_TELE, UPDATE = load_recipe("lstm_update_tele_v1"), load_recipe("lstm_update")


def training_problem(recipe: Recipe, batch: int) -> Regression:
    """Of 20x20, in the recipe's dtype."""
    family = RegressionFamily(dtype=recipe.training.dtype)
    return family.sample(range(10**7, 10**7 + batch))


def meta_loss(recipe: Recipe) -> MetaLoss:
    return recipe.training.window_loss


def windows(
    recipe: Recipe, problem: Regression, meta: MetaOptimizer, steps: int
) -> Iterator[Window]:
    """Each window, with its meta-gradient."""
    optimizer, spec = LearnedOptimizer(problem, meta), recipe.training
    return spec.gradient_estimator.windows(
        problem, optimizer, steps, spec.window, spec.window_loss, torch.Generator()
    )


def train(recipe: Recipe, problem: Regression, meta: MetaOptimizer, steps: int) -> None:
    """A trajectory with a meta-step after each window."""
    learned = [parameter for parameter in meta.parameters() if parameter.requires_grad]
    adam = torch.optim.Adam(learned, lr=1e-4)
    for window in windows(recipe, problem, meta, steps):
        for parameter, gradient in zip(learned, window.gradients, strict=True):
            parameter.grad = gradient
        adam.step()
