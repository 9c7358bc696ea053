"""How a meta-optimizer is trained: the fields of a config, checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

from metaopt.errors import UserError, check_names
from metaopt.tasks import FAMILIES, RegressionFamily
from metaopt.tasks.regression import LARGEST
from metaopt.training.estimators import ESTIMATORS
from metaopt.training.meta_loss import META_LOSSES
from metaopt.training.sources import SOURCES

REFERENCE_WIDTH = 20


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


@dataclass(frozen=True)
class TrainingSpec:
    """How a meta-optimizer is trained.

    Attributes:
        problems: "regression", section 5.2's and their relatives, which the fields from widths to
            dtype describe; or "minibatches", ordinary training of small networks, of which a batch
            holds batch_size (:mod:`metaopt.training.sources`).
        trajectories: the budget, in 20x20 problems. A batch of another width holds as many
            problems as keep the number of weights, and so the work, the same.
        batch_size: 20x20 problems trained on together.
        micro_batch: of those, how many are unrolled together; 0 for all. A batch in several parts
            can be shared by as many processes, and is the same whatever their number.
        steps: length of a trajectory, which ends before where its losses are far below log_floor.
        window: steps between two meta-steps, t_unroll.
        widths: the sizes of each batch (samples, input, hidden, output) are drawn from these.
        rectangular: draw the four one by one, with samples <= input and <= hidden, instead of
            one for all.
        depths, slopes, distributions: those of each batch are drawn from these, one named twice
            twice as often; validation problems have the first of each, and width 20.
        loss: of the problems, "half_squared" or "norm".
        dtype: of the training problems' weights, "float32" or "float64"; in float64 no rounding
            noise hides what is left to learn. Validation problems and networks are float32.
        estimator: of the meta-gradient, "truncated" (backpropagation through each window),
            "first_order" (the same, with the gradients that steps are made of as constants) or
            "pes" (persistent evolution strategies).
        pes_sigma: standard deviation of the perturbations of the meta-parameters under "pes".
        pes_pairs: antithetic pairs of trajectories under "pes".
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
        validation_families: of ``metaopt.tasks.FAMILIES``, with this loss, each validated on a
            quarter as many.
        validation_every: trajectories between two validations, and two checkpoints.
        validation_at: steps whose mean log10 loss, over these and over families, is the score
            that chooses the best checkpoint.
        seed: of the initial networks and of the training problems.
    """

    problems: str = "regression"
    trajectories: int = 720
    batch_size: int = 4
    micro_batch: int = 0
    steps: int = 100
    window: int = 6
    widths: tuple[int, ...] = (8, 12, 16, 20, 28, 40)
    rectangular: bool = True
    depths: tuple[int, ...] = (2, 2, 3)
    slopes: tuple[float, ...] = (0.1,)
    distributions: tuple[str, ...] = ("uniform",)
    loss: str = "half_squared"
    dtype: str = "float64"
    estimator: str = "truncated"
    pes_sigma: float = 0.01
    pes_pairs: int = 1
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
    validation_families: tuple[str, ...] = ("width_40", "wide_hidden", "three_layers")
    validation_every: int = 40
    validation_at: tuple[int, ...] = (10, 20, 30, 50, 100)
    seed: int = 0

    def __post_init__(self) -> None:
        positive = (
            "trajectories", "batch_size", "steps", "window", "pes_pairs", "max_skips",
            "validation_problems", "validation_every",
        )  # fmt: skip
        for name in positive:
            if getattr(self, name) < 1:
                raise UserError(
                    f"expected {name} of 1 or more, got {getattr(self, name)}: give a whole number"
                )
        for name in ("widths", "depths", "validation_at"):
            sizes = getattr(self, name)
            if not sizes or min(sizes) < 1 or (name == "widths" and max(sizes) > LARGEST):
                raise UserError(
                    f"expected positive {name}, got {list(getattr(self, name))}: "
                    f"give whole numbers of 1 or more (widths: to {LARGEST})"
                )
        for name in ("pes_sigma", "learning_rate_update", "learning_rate_element"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(
                    f"expected a positive {name}, got {getattr(self, name)}: "
                    f"the default is {getattr(type(self), name)}"
                )
        for name in ("learning_rate_final", "clip", "log_floor", "rollback", "micro_batch"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(
                    f"expected {name} of 0 or more, got {getattr(self, name)}: 0 turns it off"
                )
        if not 0 <= self.average < 1:
            raise UserError(f"expected an average in [0, 1), got {self.average}: 0 for none")
        if self.schedule not in SCHEDULES:
            raise UserError(
                f"expected a schedule of {', '.join(SCHEDULES)}, got {self.schedule!r}: name one"
            )
        if self.problems not in SOURCES:
            raise UserError(
                f"expected problems of {', '.join(SOURCES)}, got {self.problems!r}: name one"
            )
        if self.estimator not in ESTIMATORS:
            raise UserError(
                f"expected an estimator of {', '.join(ESTIMATORS)}, got {self.estimator!r}: "
                "name one"
            )
        if self.meta_loss not in META_LOSSES:
            raise UserError(
                f"expected a meta_loss of {', '.join(META_LOSSES)}, got {self.meta_loss!r}: "
                "name one"
            )
        if not 0 <= self.seed < 2**63:
            raise UserError(f"expected a seed in [0, 2^63), got {self.seed}: give a whole number")
        if self.validation_families:
            check_names("validation_families", self.validation_families, FAMILIES)
        for name in ("slopes", "distributions"):
            if not getattr(self, name):
                raise UserError(f"expected {name} to draw from, got none: name at least one")
        for depth, slope, distribution in product(self.depths, self.slopes, self.distributions):
            replace(
                self.reference,
                depth=depth,
                slope=slope,
                distribution=distribution,
                dtype=self.dtype,
            )

    @property
    def shards(self) -> int:
        """How many parts a batch has, if it has as many problems."""
        return -(-self.batch_size // self.micro_batch) if self.micro_batch else 1

    @property
    def reference(self) -> RegressionFamily:
        """The family of the validation problems; the budget counts in problems of its size."""
        return RegressionFamily.square(
            REFERENCE_WIDTH,
            depth=self.depths[0],
            slope=self.slopes[0],
            distribution=self.distributions[0],
            loss=self.loss,
        )
