"""Meta-training: draw problems, unroll, step m1 and m2, validate, keep the best."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metaopt.errors import UserError
from metaopt.evaluation.rollout import rollout
from metaopt.learned.meta_optimizer import MetaOptimizer, MetaOptimizerSpec
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.problems import TwoLayerFamily, check_seeds, first_seeds
from metaopt.problems.seeds import TRAINING
from metaopt.training.meta_loss import META_LOSSES
from metaopt.training.unroll import unroll

REFERENCE_WIDTH = 20
DIVERGED = 38.0  # log10 loss that stands for a problem whose loss is not finite


@dataclass(frozen=True)
class TrainingSpec:
    """How a meta-optimizer is trained.

    Attributes:
        trajectories: the budget, in 20x20 problems. A batch of another width holds as many
            problems as keep the number of weights, and so the work, the same.
        batch_size: 20x20 problems trained on together.
        steps, window: length of a trajectory, and t_unroll.
        widths: the width of each batch is drawn from these (samples, input, hidden and output).
        loss, slope, dtype: of the problems.
        meta_loss, log_floor: "log" (mean of log(L + floor)) or "sum" (as in the paper).
        learning_rate_update, learning_rate_element: of Adam on m1 and m2.
        schedule, learning_rate_final: "cosine" down to the final rate, or "constant".
        clip: bound on the norm of the whole meta-gradient; 0 for none.
        max_skips: end the run after so many non-finite meta-gradients in a row.
        validation_problems, validation_every: how many validation problems, and after how many
            trajectories each time.
        validation_at: steps whose mean log10 loss is the score that chooses the best checkpoint.
        seed: of the initial networks and of the training problems.
    """

    trajectories: int = 720
    batch_size: int = 8
    steps: int = 100
    window: int = 10
    widths: tuple[int, ...] = (8, 12, 16, 20, 28, 40)
    loss: str = "half_squared"
    slope: float = 0.1
    dtype: str = "float32"
    meta_loss: str = "log"
    log_floor: float = 1e-6
    learning_rate_update: float = 3e-3
    learning_rate_element: float = 3e-3
    schedule: str = "cosine"
    learning_rate_final: float = 1e-5
    clip: float = 0.1
    max_skips: int = 20
    validation_problems: int = 32
    validation_every: int = 80
    validation_at: tuple[int, ...] = (30, 50, 100, 300)
    seed: int = 0

    def __post_init__(self) -> None:
        positive = (
            "trajectories", "batch_size", "steps", "window", "max_skips",
            "validation_problems", "validation_every",
        )  # fmt: skip
        for name in positive:
            if getattr(self, name) < 1:
                raise UserError(f"expected {name} of 1 or more, got {getattr(self, name)}")
        for name in ("widths", "validation_at"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise UserError(f"expected positive {name}, got {list(getattr(self, name))}")
        for name in ("learning_rate_update", "learning_rate_element"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"expected a positive {name}, got {getattr(self, name)}")
        for name in ("learning_rate_final", "clip", "log_floor"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"expected {name} of 0 or more, got {getattr(self, name)}")
        if self.schedule not in SCHEDULES:
            raise UserError(
                f"expected a schedule of {', '.join(SCHEDULES)}, got {self.schedule!r}: name one"
            )
        if self.meta_loss not in META_LOSSES:
            raise UserError(
                f"expected a meta_loss of {', '.join(META_LOSSES)}, got {self.meta_loss!r}"
            )
        if not 0 <= self.seed < 2**63:
            raise UserError(f"expected a seed in [0, 2^63), got {self.seed}")
        self.family(REFERENCE_WIDTH)

    def family(self, width: int) -> TwoLayerFamily:
        """The problems of one width."""
        return TwoLayerFamily.square(width, slope=self.slope, loss=self.loss, dtype=self.dtype)


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


class Trainer:
    """One meta-training run; all it needs to go on is in :meth:`state`.

    Each call of :meth:`train_batch` trains on one batch of trajectories. The rates are a
    function of progress, problem seeds come from ``generator``; nothing else is random.
    """

    def __init__(self, networks: MetaOptimizerSpec, spec: TrainingSpec) -> None:
        self.spec = spec
        self.meta = MetaOptimizer(networks, seed=spec.seed)
        self.generator = torch.Generator().manual_seed(spec.seed)
        element = [] if self.meta.element is None else list(self.meta.element.parameters())
        groups: list[dict[str, Any]] = [{"params": list(self.meta.update.parameters())}]
        if element:
            groups.append({"params": element})
        self.adam = torch.optim.Adam(groups, lr=spec.learning_rate_update)
        self.trajectories = 0
        self.meta_steps = 0
        self.skipped = 0
        self.skipped_in_row = 0
        self.best_score = math.inf
        self.best: dict[str, Tensor] = {}

    @property
    def finished(self) -> bool:
        """Whether the budget is spent."""
        return self.trajectories >= self.spec.trajectories

    def train_batch(self) -> dict[str, float]:
        """Train on the next batch; the numbers to log.

        A non-finite meta-gradient skips the step and ends this batch, whose weights are lost.

        Raises:
            UserError: after ``max_skips`` skipped steps in a row.
        """
        self._set_rates()
        problem = self._draw()
        optimizer = LearnedOptimizer(problem, self.meta)
        meta_loss = META_LOSSES[self.spec.meta_loss](self.spec.log_floor)
        values: list[float] = []
        norms: list[float] = []
        losses = torch.full((1, problem.batch), math.nan)
        for window in unroll(problem, optimizer, self.spec.steps, self.spec.window, meta_loss):
            losses = window.losses
            norm = torch.linalg.vector_norm(
                torch.stack([torch.linalg.vector_norm(g) for g in window.gradients])
            ).item()
            if not (math.isfinite(norm) and math.isfinite(window.meta_loss.item())):
                self._skip()
                break
            self._step(window.gradients, norm)
            values.append(window.meta_loss.item())
            norms.append(norm)
        self.trajectories += self.spec.batch_size
        return {
            "meta_loss": sum(values) / len(values) if values else math.nan,
            "gradient_norm": sum(norms) / len(norms) if norms else math.nan,
            "final_loss": losses[-1].double().log().mean().exp().item(),
            "skipped": float(self.skipped),
            "learning_rate": self.adam.param_groups[0]["lr"],
        }

    def validate(self) -> dict[str, float]:
        """Score the present networks on the validation problems; remember them if best.

        The score is the mean log10 loss over problems and over ``validation_at``.
        """
        seeds = first_seeds("validation", self.spec.validation_problems)
        problem = self.spec.family(REFERENCE_WIDTH).sample(seeds)
        trajectory = rollout(
            problem,
            LearnedOptimizer(problem, self.meta),
            max(self.spec.validation_at),
            measure_defects=False,
        )
        logs = trajectory.losses.clamp(min=1e-30).log10()
        logs = logs.nan_to_num(nan=DIVERGED, posinf=DIVERGED).mean(dim=1)
        score = logs[list(self.spec.validation_at)].mean().item()
        if score < self.best_score:
            self.best_score = score
            self.best = {k: v.clone() for k, v in self.meta.state_dict().items()}
        return {"score": score} | {
            f"log10_loss_at_{t}": logs[t].item() for t in self.spec.validation_at
        }

    def _draw(self) -> Any:
        width = self.spec.widths[self._integer(0, len(self.spec.widths))]
        family = self.spec.family(width)
        budget = self.spec.batch_size * self.spec.family(REFERENCE_WIDTH).coordinates
        count = max(1, round(budget / family.coordinates))
        seeds = [self._integer(TRAINING.start, 2**53) for _ in range(count)]
        return family.sample(check_seeds(seeds, "training"))

    def _integer(self, low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=self.generator))

    def _set_rates(self) -> None:
        schedule = SCHEDULES[self.spec.schedule]
        progress = min(1.0, self.trajectories / self.spec.trajectories)
        rates = (self.spec.learning_rate_update, self.spec.learning_rate_element)
        for group, rate in zip(self.adam.param_groups, rates, strict=False):
            group["lr"] = schedule(rate, self.spec.learning_rate_final, progress)

    def _step(self, gradients: list[Tensor], norm: float) -> None:
        scale = self.spec.clip / norm if 0 < self.spec.clip < norm else 1.0
        for parameter, gradient in zip(self.meta.parameters(), gradients, strict=True):
            parameter.grad = gradient * scale
        self.adam.step()
        self.meta_steps += 1
        self.skipped_in_row = 0

    def _skip(self) -> None:
        self.skipped += 1
        self.skipped_in_row += 1
        if self.skipped_in_row >= self.spec.max_skips:
            raise UserError(
                f"expected finite meta-gradients, got {self.skipped_in_row} non-finite ones in a "
                f"row (trajectory {self.trajectories}): lower the learning rates or the clip, or "
                f"go back to the best checkpoint"
            )
