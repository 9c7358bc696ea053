"""How each learned method of a study is made: its networks and its meta-training.

``configs/`` holds the same recipes for ``train_meta.py``; a test compares them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from metaopt.learned.meta_optimizer import MetaOptimizerSpec
from metaopt.training.spec import TrainingSpec


@dataclass(frozen=True)
class Recipe:
    """What a meta-seed turns into a learned optimizer."""

    networks: MetaOptimizerSpec
    training: TrainingSpec

    def with_seed(self, seed: int) -> Recipe:
        """The same with another meta-seed."""
        return replace(self, training=replace(self.training, seed=seed))

    def with_budget(self, trajectories: int) -> Recipe:
        """The same with another budget, validated 20 times in all if it is longer than now."""
        every = max(self.training.validation_every, trajectories // 20)
        training = replace(self.training, trajectories=trajectories, validation_every=every)
        return replace(self, training=training)


_SQUARE = TrainingSpec(
    window=3,
    meta_loss="log",
    rectangular=False,
    depths=(2,),
    dtype="float32",
    learning_rate_update=3e-3,
    learning_rate_element=3e-3,
    log_floor=1e-6,
    validation_families=(),
)

LAYERWISE: dict[str, Recipe] = {
    "lstm_layerwise": Recipe(
        MetaOptimizerSpec(update="layerwise", element="none", hidden=16),
        TrainingSpec(
            problems="minibatches",
            trajectories=960,
            batch_size=16,
            steps=600,
            window=200,
            meta_loss="log_tail",
            log_floor=1e-3,
            learning_rate_update=3e-3,
            clip=0.3,
            average=0.98,
            rollback=0.0,
            validation_problems=4,
            validation_families=(),
            validation_every=192,
            validation_at=(100, 300, 1000),
        ),
    )
}
"""For ordinary networks on minibatches."""

SHIPPED: dict[str, Recipe] = {
    "lstm_update_tele": Recipe(MetaOptimizerSpec(), TrainingSpec()),
    "lstm_update": Recipe(
        MetaOptimizerSpec(element="none", heads=("plain", "scaled_gradient"), layers=2),
        replace(_SQUARE, batch_size=8, window=10, widths=(20,), clip=0.1, estimator="first_order"),
    ),
    "lstm_lr_tele": Recipe(
        MetaOptimizerSpec(update="step_size", element="coordinatewise", bound=8.0), _SQUARE
    ),
}
"""The methods of Figure 6, each in the form that was best on validation problems."""

_PAPER_TRAINING = TrainingSpec(
    batch_size=1,
    steps=100,
    window=10,
    widths=(20,),
    rectangular=False,
    depths=(2,),
    dtype="float32",
    log_floor=1e-6,
    meta_loss="sum",
    learning_rate_update=1e-4,
    learning_rate_element=1e-3,
    schedule="constant",
    average=0.0,
    clip=0.0,
    validation_every=50,
    validation_at=(30, 50, 100),
    validation_families=(),
    estimator="first_order",
    rollback=0.0,
)
_FLAT = MetaOptimizerSpec(
    update="flat", element="flat", action="pre_activation", hidden=300, layers=2, hold=0.0
)

PAPER: dict[str, Recipe] = {
    "paper/lstm_update_tele": Recipe(_FLAT, replace(_PAPER_TRAINING, trajectories=700)),
    "paper/lstm_update": Recipe(
        replace(_FLAT, element="none", action="post_activation"),
        replace(_PAPER_TRAINING, trajectories=600),
    ),
    "paper/lstm_lr_tele": Recipe(
        replace(_FLAT, update="flat_step_size"),
        replace(_PAPER_TRAINING, trajectories=30, validation_every=5),
    ),
    "paper/released_code": Recipe(
        replace(_FLAT, action="post_activation", exponential="first_order"),
        replace(
            _PAPER_TRAINING,
            trajectories=700,
            learning_rate_update=1e-3,
            learning_rate_element=1e-4,
        ),
    ),
}
"""Section 5.2 as printed, and as in the released code: see ``configs/paper/``."""

FURTHER: dict[str, Recipe] = {
    "lstm_update_tele_entries": Recipe(
        MetaOptimizerSpec(element="coordinatewise", bound=8.0, heads=("free", "scaled_gradient")),
        replace(_SQUARE, estimator="first_order"),
    ),
    "lstm_update_tele_eq79": Recipe(
        MetaOptimizerSpec(action="pre_activation"),
        TrainingSpec(
            estimator="first_order", meta_loss="log", window=3, depths=(2,), validation_families=()
        ),
    ),
}
"""LSTM(update,tele) with m2 over the entries of T, and with the action of eq. 79."""

RECIPES = SHIPPED | LAYERWISE | FURTHER | PAPER
