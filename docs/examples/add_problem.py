"""A new problem: regression with the pseudo-Huber loss, which a few wild targets do not rule.

It is a batch of independent two-layer networks, L = sum of s^2 (sqrt(1 + (r / s)^2) - 1) over the
residuals r, so 1/2 r^2 for small ones. A family draws it from seeds; every optimizer steps it, and
a distribution of tasks says how a learned optimizer is trained on it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metaopt import LearnedOptimizer
from metaopt.evaluation import rollout
from metaopt.learned import MetaOptimizerSpec
from metaopt.symmetry import Identity, LayerChain, LeakyReLU
from metaopt.tasks import TaskBatch, TaskSampler, first_seeds
from metaopt.training import (
    TASK_DISTRIBUTIONS,
    Drawn,
    TaskDistribution,
    Trainer,
    TrainingSpec,
    draw_seeds,
)


class Robust(TaskBatch):
    """B problems; every parameter has them in its first dimension.

    Args:
        w1, w2: ``(B, hidden, input)`` and ``(B, output, hidden)``.
        x, y: ``(B, input, samples)`` and ``(B, output, samples)``; a sample is a column.
    """

    def __init__(self, w1: Tensor, w2: Tensor, x: Tensor, y: Tensor, scale: float) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(w1), nn.Parameter(w2)
        self.register_buffer("x", x)
        self.register_buffer("y", y)
        self.y: Tensor
        self.scale = scale
        # How the parameters are a chain, so that a group can act; LayerChain((), (), 1) for none.
        self.chain = LayerChain((LeakyReLU(0.1), Identity()), biased=(False, False), batch_dims=1)

    def forward(self, step: int = 0) -> Tensor:
        """The losses, ``(B,)``; ``step`` is for problems with other data at each step."""
        residuals = self.y - self.chain.output(self.chain.layers([self.w1, self.w2]), self.x)
        root = (1 + (residuals / self.scale).square()).sqrt()
        # r^2 / (1 + root) is s^2 (root - 1) without its cancellation.
        return (residuals.square() / (1 + root)).sum(dim=(-2, -1))


@dataclass(frozen=True)
class RobustFamily:
    """Draws them. Each is drawn alone, so a seed gives one problem whatever is beside it."""

    width: int = 12
    outliers: float = 0.1
    scale: float = 10.0
    dtype: torch.dtype = torch.float32

    @property
    def coordinates(self) -> int:
        """The number of weights of one problem."""
        return 2 * self.width**2

    def sample(self, seeds: Iterable[int]) -> Robust:
        """One problem a seed."""
        drawn = [self._draw(seed) for seed in seeds]
        w1, w2, x, y = (torch.stack(tensors).to(self.dtype) for tensors in zip(*drawn, strict=True))
        return Robust(w1, w2, x, y, self.scale)

    def _draw(self, seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        drawn = [torch.rand(self.width, self.width, generator=generator) for _ in range(4)]
        wild = torch.rand(self.width, self.width, generator=generator) < self.outliers
        return [*drawn[:3], torch.where(wild, 10 * drawn[3], drawn[3])]


@TASK_DISTRIBUTIONS.register("robust")  # a config can name it now: problems: robust
@dataclass(frozen=True)
class RobustTasks(TaskDistribution):
    """What a learned optimizer can be trained on; its fields are keys of a config.

    Attributes:
        outliers: the fraction of targets that are wild.
    """

    outliers: float = 0.1

    def draw(self, batch_size: int, generator: torch.Generator) -> Drawn:
        """The next batch to train on, in float64."""
        family = RobustFamily(outliers=self.outliers, dtype=torch.float64)
        return Drawn(family, draw_seeds(batch_size, generator))

    def validation(self, count: int) -> list[tuple[TaskSampler, int]]:
        """What checkpoints are chosen on."""
        return [(RobustFamily(outliers=self.outliers), count)]


def final_losses(optimizer: str | None, steps: int = 60) -> Tensor:
    """Of 8 test problems, by a shipped optimizer, or by Adam."""
    problem = RobustFamily().sample(first_seeds("test", 8))
    stepped: torch.optim.Optimizer = (
        torch.optim.Adam(problem.parameters(), lr=0.1)
        if optimizer is None
        else LearnedOptimizer(problem, optimizer)
    )
    return rollout(problem, stepped, steps).losses[-1]


def trained() -> Trainer:
    """A learned optimizer after two batches of training on these problems: far too few."""
    spec = TrainingSpec(
        problems="robust",
        trajectories=4,
        batch_size=2,
        steps=12,
        validation_problems=2,
        validation_families=(),
        validation_at=(10,),
    )
    trainer = Trainer(MetaOptimizerSpec(hidden=4), spec)
    while not trainer.finished:
        trainer.train_batch()
    trainer.validate()
    return trainer


def main() -> dict[str, float]:
    """Geometric means over the test problems, and the score of the training."""
    start = RobustFamily().sample(first_seeds("test", 8))().detach()
    losses = {
        "at the start": start,
        "lstm_update_tele": final_losses("lstm_update_tele"),
        "Adam": final_losses(None),
    }
    means = {name: float(loss.log().mean().exp()) for name, loss in losses.items()}
    return means | {"validation score of the training": trained().best_score}


if __name__ == "__main__":
    torch.set_num_threads(1)  # the tensors are tiny; more threads only wait for one another
    for name, value in main().items():
        print(f"{name}: {value:.6g}")
