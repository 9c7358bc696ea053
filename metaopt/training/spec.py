"""How a meta-optimizer is trained: the flat view of a config, checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from metaopt.checks import check_not_negative, check_positive, check_whole
from metaopt.errors import UserError
from metaopt.registry import Registry, Settings
from metaopt.training.distributions import TASK_DISTRIBUTIONS, TaskDistribution
from metaopt.training.estimators import ESTIMATORS, Estimator
from metaopt.training.meta_loss import META_LOSSES, MetaLoss


def cosine(rate: float, final: float, progress: float) -> float:
    """From ``rate`` at progress 0 to ``final`` at progress 1."""
    return final + 0.5 * (rate - final) * (1 + math.cos(math.pi * progress))


def constant(rate: float, final: float, progress: float) -> float:
    """``rate`` throughout."""
    return rate


SCHEDULES: dict[str, Callable[[float, float, float], float]] = {
    "cosine": cosine,
    "constant": constant,
}


@dataclass(frozen=True, init=False, repr=False)
class TrainingSpec(Settings):
    """How a meta-optimizer is trained: tasks, estimator, meta-loss, and the fields of all of them.

    The fields of a component stand in its class, in :data:`TASK_DISTRIBUTIONS`,
    :data:`ESTIMATORS` and :data:`META_LOSSES`; here they are keywords and attributes under the
    same names.

    Attributes:
        problems: what is trained on: "regression", section 5.2's and their relatives, which the
            fields from widths to dtype describe; or "minibatches", ordinary training of small
            networks, of which a batch holds batch_size.
        trajectories: the budget, in 20x20 problems. A batch of another width holds as many
            problems as keep the number of weights, and so the work, the same.
        batch_size: 20x20 problems trained on together.
        micro_batch: of those, how many are unrolled together; 0 for all. A batch in several parts
            can be shared by as many processes, and is the same whatever their number.
        steps: length of a trajectory, which ends before where its losses are far below log_floor.
        window: steps between two meta-steps, t_unroll.
        estimator: of the meta-gradient, "truncated" (backpropagation through each window),
            "first_order" (the same, with the gradients that steps are made of as constants) or
            "pes" (persistent evolution strategies).
        meta_loss: of a window: "log_last" (log(L + floor) at its end), "log_tail" (its mean over
            the last tenth), "log" (over all steps) or "sum" (of L, as in the paper).
        log_floor: the floor in the log meta-loss; below it nothing is left to learn.
        learning_rate_update: of Adam on m1.
        learning_rate_element: of Adam on m2.
        schedule: of both rates, "cosine" down to the final rate or "constant".
        learning_rate_final: where the cosine ends.
        average: decay of the moving average of the networks over meta-steps, which is what is
            validated and shipped; 0 for the networks as they are.
        clip: bound on the norm of the whole meta-gradient; 0 for none.
        max_skips: end the run after so many non-finite meta-gradients in a row.
        rollback: go back to the best networks, as they and Adam were then, and on at half the
            rates, where a validation score is worse than theirs by more than this (in decades of
            loss); 0: never.
        validation_problems: how many, of width 20.
        validation_every: trajectories between two validations, and two checkpoints.
        validation_at: steps whose mean log10 loss, over these and over families, is the score
            that chooses the best checkpoint.
        seed: of the initial networks and of the training problems.
    """

    components: ClassVar[Mapping[str, Registry[Any]]] = {
        "problems": TASK_DISTRIBUTIONS,
        "estimator": ESTIMATORS,
        "meta_loss": META_LOSSES,
    }

    problems: str = "regression"
    trajectories: int = 720
    batch_size: int = 4
    micro_batch: int = 0
    steps: int = 100
    window: int = 6
    estimator: str = "truncated"
    meta_loss: str = "log_last"
    log_floor: float = 1e-12
    learning_rate_update: float = 1e-3
    learning_rate_element: float = 1e-3
    schedule: str = "cosine"
    learning_rate_final: float = 1e-5
    average: float = 0.99
    clip: float = 0.02
    max_skips: int = 20
    rollback: float = 4.0
    validation_problems: int = 16
    validation_every: int = 40
    validation_at: tuple[int, ...] = (10, 20, 30, 50, 100)
    seed: int = 0

    def check(self) -> None:
        """Check the fields that are of no component.

        Raises:
            UserError: for a value that cannot be used.
        """
        for name in (
            "trajectories", "batch_size", "steps", "window", "max_skips", "validation_problems",
            "validation_every",
        ):  # fmt: skip
            check_whole(name, getattr(self, name))
        if not self.validation_at or min(self.validation_at) < 1:
            raise UserError(
                f"expected positive validation_at, got {list(self.validation_at)}: give whole "
                "numbers of 1 or more"
            )
        for name in ("learning_rate_update", "learning_rate_element"):
            check_positive(name, getattr(self, name), getattr(type(self), name))
        for name in ("learning_rate_final", "clip", "log_floor", "rollback", "micro_batch"):
            check_not_negative(name, getattr(self, name))
        if not 0 <= self.average < 1:
            raise UserError(f"expected an average in [0, 1), got {self.average}: 0 for none")
        if self.schedule not in SCHEDULES:
            raise UserError(
                f"expected a schedule of {', '.join(SCHEDULES)}, got {self.schedule!r}: name one"
            )
        if not 0 <= self.seed < 2**63:
            raise UserError(f"expected a seed in [0, 2^63), got {self.seed}: give a whole number")

    @property
    def tasks(self) -> TaskDistribution:
        """What is trained and validated on."""
        return self.chosen(TASK_DISTRIBUTIONS, self.problems)

    @property
    def gradient_estimator(self) -> Estimator:
        """The estimator of the meta-gradient."""
        return self.chosen(ESTIMATORS, self.estimator)

    @property
    def window_loss(self) -> MetaLoss:
        """The meta-loss of a window."""
        return self.chosen(META_LOSSES, self.meta_loss)

    @property
    def shards(self) -> int:
        """How many parts a batch has, if it has as many problems."""
        return -(-self.batch_size // self.micro_batch) if self.micro_batch else 1
