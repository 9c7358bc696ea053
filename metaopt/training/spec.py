"""The config of a training run, checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from metaopt.checks import check_choice, check_not_negative, check_positive, check_whole
from metaopt.errors import UserError
from metaopt.registry import Registry, Settings
from metaopt.training.distributions import TASK_DISTRIBUTIONS, TaskDistribution
from metaopt.training.estimators import ESTIMATORS, Estimator
from metaopt.training.meta_loss import META_LOSSES, MetaLoss
from metaopt.training.own_tasks import OwnTasks as OwnTasks  # which registers it


def cosine(rate: float, final: float, progress: float) -> float:
    """Return a learning rate that falls along half a cosine.

    Args:
        rate: the rate at progress 0.
        final: the rate at progress 1.
        progress: the part of the budget that is spent, in [0, 1].
    """
    return final + 0.5 * (rate - final) * (1 + math.cos(math.pi * progress))


def constant(rate: float, final: float, progress: float) -> float:
    """Return ``rate``, whatever the progress."""
    return rate


SCHEDULES: dict[str, Callable[[float, float, float], float]] = {
    "cosine": cosine,
    "constant": constant,
}


@dataclass(frozen=True, init=False, repr=False)
class TrainingSpec(Settings):
    """How a learned optimizer is trained: the tasks, the meta-gradient, the meta-loss.

    The fields of a task distribution, an estimator or a meta-loss are declared in its class, in
    :data:`TASK_DISTRIBUTIONS`, :data:`ESTIMATORS` or :data:`META_LOSSES`. They are keywords and
    attributes of this class too, under the same names.

    Attributes:
        problems: the tasks to train on. "regression" is section 5.2's tasks and their relatives.
            "minibatches" is ordinary training of small networks. "task" is a task of your own, and
            --task chooses it.
        trajectories: the budget of the run. A trajectory is one run of the optimizer on one task of
            width 20. Smaller tasks count less and larger ones more, by their number of weights.
        batch_size: tasks of width 20 that are trained on together.
        micro_batch: how many of these are unrolled together. The parts of a batch can be shared by
            several processes, and the result does not depend on how many there are. 0 makes as many
            parts as there are processes at the start of the run: one process unrolls all together,
            and several give its result but for rounding.
        steps: steps of the optimizer in a trajectory. It ends earlier where all its losses are far
            below log_floor.
        window: steps between two meta-gradients, t_unroll in the paper.
        estimator: the estimator of the meta-gradient. "truncated" backpropagates through each
            window. "first_order" does too, but treats the tasks' gradients as constants. "pes"
            compares losses at perturbed networks (persistent evolution strategies). "es" does so
            within a window alone (truncated evolution strategies).
        meta_loss: the meta-loss of a window, with L the loss of a task. "log_last" is
            log(L + log_floor) after the last step, "log_tail" its mean over the last tenth of the
            steps, "log" its mean over all steps, and "sum" the sum of L over all steps, as in the
            paper.
        log_floor: a small loss that is added before the logarithm is taken. A loss far below it is
            as good as zero.
        learning_rate_update: learning rate of Adam for m1, the update network.
        learning_rate_element: learning rate of Adam for m2, the group-element network.
        schedule: how both learning rates change over the run. "cosine" lowers them to
            learning_rate_final, "constant" keeps them.
        learning_rate_final: both learning rates at the end of the cosine schedule.
        average: decay per meta-step of the moving average of the networks. The averaged networks
            are validated and saved; 0 takes the networks as they are.
        clip: largest norm of a meta-gradient; a longer one is scaled down. 0 for no bound.
        max_skips: end the run after this many non-finite meta-gradients in a row.
        rollback: return to the best networks so far, at half the learning rates, if a validation
            score is worse than theirs by more than this, in powers of ten of the loss. 0 for never.
        validation_problems: number of validation tasks, of width 20.
        validation_every: trajectories between two validations. A checkpoint is written at each.
        validation_at: steps whose mean log10 loss is the validation score. The networks with the
            lowest score are saved as best.safetensors.
        seed: seed of the initial networks and of the choice of training tasks.
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
        """Check the fields that belong to no component.

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
            raise UserError(
                f"expected an average in [0, 1), got {self.average}: 0 takes no average"
            )
        check_choice("a schedule", self.schedule, SCHEDULES)
        check_whole("seed", self.seed, 0, 2**63 - 1)

    @property
    def batch(self) -> int:
        """Tasks of a batch; a budget below one batch is one smaller batch."""
        return min(self.batch_size, self.trajectories)

    @property
    def tasks(self) -> TaskDistribution:
        """The task distribution to train and validate on."""
        return self.chosen(TASK_DISTRIBUTIONS, self.problems)

    @property
    def gradient_estimator(self) -> Estimator:
        """The estimator of the meta-gradient."""
        return self.chosen(ESTIMATORS, self.estimator)

    @property
    def window_loss(self) -> MetaLoss:
        """The meta-loss of a window."""
        return self.chosen(META_LOSSES, self.meta_loss)

    def shards(self, processes: int) -> int:
        """Return the number of parts that a batch is unrolled in, if it has as many tasks.

        Args:
            processes: how many there are at the start of the run; ``micro_batch`` goes before them.
        """
        return -(-self.batch_size // self.micro_batch) if self.micro_batch else processes

    def rates(self, trajectories: int) -> list[float]:
        """Return the learning rates of m1 and of m2, as the schedule has them.

        Args:
            trajectories: how much of the budget is spent.
        """
        schedule, progress = SCHEDULES[self.schedule], min(1.0, trajectories / self.trajectories)
        return [
            schedule(rate, self.learning_rate_final, progress)
            for rate in (self.learning_rate_update, self.learning_rate_element)
        ]
