"""A task of one's own, from the data to a learned optimizer that was trained on it.

The task is to tell three spirals apart, by a residual network with batch norm. The family draws
networks of several sizes to train on. The task itself is what the result is judged on.

    python train_meta.py --task docs.examples.own_task:AnySpirals --trajectories 256 \
        --batch_size 8 --steps 200 --window 50 --meta_loss log_tail --clip 0.3 --average 0.98 \
        --hidden 16 --validation_problems 2 --validation_every 64 --validation_at "[50, 200]" \
        --out runs/spirals
    python eval_meta.py --task docs.examples.own_task:Spirals --problems 5 --steps 200 \
        --methods runs/spirals/best.safetensors,lstm_layerwise,adam@0.003,adam@0.01 \
        --out runs/spirals/eval
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import metaopt
from metaopt.learned import MetaOptimizerSpec
from metaopt.tasks import SPLITS, SingleTask, Task, TaskFamily
from metaopt.training import Trainer, TrainingSpec
from metaopt.training.run import BEST, run_training


class Residual(nn.Module):
    """x + relu(norm(W x + b))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(width, width), nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        """The features after the block."""
        return x + F.relu(self.norm(self.linear(x)))


class Spirals(Task):
    """Three spirals in the plane, a network of some width and depth, and the cross entropy."""

    def __init__(self, width: int = 24, blocks: int = 2, batch: int = 64) -> None:
        self.width, self.blocks, self.batch = width, blocks, batch

    def model(self, seed: int) -> nn.Module:
        """Fresh weights; the same seed gives the same."""
        torch.manual_seed(seed)
        blocks = [Residual(self.width) for _ in range(self.blocks)]
        return nn.Sequential(nn.Linear(2, self.width), *blocks, nn.Linear(self.width, 3))

    def batches(self, seed: int, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless batches; each split has points of its own."""
        generator = torch.Generator().manual_seed(3 * seed + SPLITS.index(split))
        while True:
            classes = torch.randint(0, 3, (self.batch,), generator=generator)
            radius = torch.rand(self.batch, generator=generator)
            noise = 0.1 * torch.randn(self.batch, generator=generator)
            angle = 4.0 * radius + 2.1 * classes + noise
            yield torch.stack((radius * angle.cos(), radius * angle.sin()), dim=1), classes

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """A scalar."""
        x, classes = batch
        return F.cross_entropy(model(x), classes)

    def metrics(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """What is reported beside the loss."""
        x, classes = batch
        return {"accuracy": (model(x).argmax(dim=1) == classes).float().mean()}


class AnySpirals(TaskFamily):
    """The same with networks of other sizes; the same seed gives the same task."""

    def sample(self, seed: int) -> Spirals:
        """A task to train on."""
        draw = random.Random(seed)
        return Spirals(draw.choice((12, 16, 32)), draw.choice((1, 2, 3)), draw.choice((32, 64)))


def trained(out: Path, trajectories: int = 4, steps: int = 12) -> Path:
    """Train from Python instead of the command line; the path of the checkpoint."""
    spec = TrainingSpec(
        problems="task",
        task=f"{__name__}:AnySpirals",
        trajectories=trajectories,
        batch_size=min(8, trajectories),
        steps=steps,
        window=min(50, steps),
        validation_problems=2,
        validation_every=trajectories,
        validation_at=(steps,),
        eval_batches=2,
    )
    trainer = Trainer(MetaOptimizerSpec(update="layerwise", element="none", hidden=16), spec)
    run_training(trainer, out, resume=False, overwrite=True)
    return out / BEST


def accuracy(optimizer: str | Path, steps: int = 60) -> float:
    """The test accuracy of a network that a learned optimizer trained in an ordinary loop."""
    task = Spirals()
    model, batches = task.model(seed=0), task.batches(0, "train")
    learned = metaopt.LearnedOptimizer(model, optimizer)
    for _ in range(steps):
        learned.zero_grad()
        task.loss(model, next(batches)).backward()
        learned.step()
    single = SingleTask(task, seed=0)
    single.network.load_state_dict(model.state_dict())
    return float(single.measure("test", 10)["accuracy"])


def main() -> dict[str, float]:
    """Train for far too short a time, and use what came out."""
    with tempfile.TemporaryDirectory() as folder:
        own = trained(Path(folder) / "run")
        return {"own": accuracy(own), "lstm_layerwise": accuracy("lstm_layerwise")}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, value in main().items():
        print(f"{name}: test accuracy {value:.3f}")
