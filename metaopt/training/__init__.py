"""Meta-training of learned optimizers, with the tables that take components of your own."""

from metaopt.extras import extra

with extra("train"):
    from metaopt.training.distributions import (
        TASK_DISTRIBUTIONS,
        Drawn,
        TaskDistribution,
        draw_seeds,
    )
    from metaopt.training.estimators import ESTIMATORS, Estimator
    from metaopt.training.meta_loss import META_LOSSES, MetaLoss
    from metaopt.training.run import BEST, LAST, run_training
    from metaopt.training.spec import TrainingSpec
    from metaopt.training.trainer import Trainer
    from metaopt.training.unroll import Window, unroll

__all__ = [
    "BEST",
    "ESTIMATORS",
    "LAST",
    "META_LOSSES",
    "TASK_DISTRIBUTIONS",
    "Drawn",
    "Estimator",
    "MetaLoss",
    "TaskDistribution",
    "Trainer",
    "TrainingSpec",
    "Window",
    "draw_seeds",
    "run_training",
    "unroll",
]
