"""Networks that are no chain of layers, on all of a few real samples at once.

A residual network with layer norms on a table, and on 200 digits of MNIST a convolutional network
with batch norm, a transformer over the rows, and a recurrent network over them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from metaopt.randomness import same_randomness
from metaopt.tasks import Task
from metaopt.tasks.data import Images, standardized
from studies.full_batch.problems import Regression, Rows, Table

SAMPLES = 200
SIDE = 14  # of a digit, after pooling
CLASSES = 10


class Block(nn.Module):
    """x + W_2 tanh(W_1 norm(x)).

    Args:
        width: of x.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inside = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum."""
        total: Tensor = x + self.inside(x)
        return total


class Attention(nn.Module):
    """A transformer of one layer over the rows of images, whose tokens are averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(SIDE, 32)
        self.place = nn.Parameter(0.1 * torch.randn(SIDE, 32))
        self.layer = nn.TransformerEncoderLayer(
            32, 4, 64, 0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.last = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.last(self.layer(self.embedding(x[:, 0]) + self.place).mean(dim=1))
        return logits


class Recurrent(nn.Module):
    """A GRU over the rows of images."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.GRU(SIDE, 32, batch_first=True), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.last(self.layer(x[:, 0])[0][:, -1])
        return logits


def convolutional() -> nn.Module:
    """Return two convolutions with batch norm, and a Linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True),
        nn.Flatten(), nn.Linear(16 * 16, CLASSES),
    )  # fmt: skip


@final
class Residual(Regression):
    """The table "diabetes" with a residual network: a layer, two blocks, and a layer."""

    def __init__(self) -> None:
        self.table = Table("diabetes")

    def rows(self, seed: int) -> tuple[Rows, Rows]:
        """Divide the rows at random. See :meth:`Regression.rows`."""
        return self.table.rows(seed)

    def model(self, seed: int) -> nn.Module:
        """Return the network. See :meth:`Task.model`."""
        width, out = self.table.widths[0], self.table.widths[-1]
        with same_randomness(seed):
            return nn.Sequential(nn.Linear(width, 16), Block(16), Block(16), nn.Linear(16, out))


@final
class Digits(Task):
    """Says which digit an image is; 200 images are stepped on, and 200 others held out.

    Args:
        images: a seed draws from them.
        network: makes the network.
    """

    def __init__(self, images: Images, network: Callable[[], nn.Module]) -> None:
        self.images, self.network = images, network

    def model(self, seed: int) -> nn.Module:
        """Return the network. See :meth:`Task.model`."""
        with same_randomness(seed):
            return self.network()

    def batches(self, seed: int, split: str) -> Iterable[Rows]:
        """Return one batch of images of half the size. See :meth:`Task.batches`."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.images.pixels), generator=generator)[: 2 * SAMPLES]
        own = order[:SAMPLES] if split == "train" else order[SAMPLES:]
        pixels = functional.avg_pool2d(standardized(self.images.pixels[own]), 2)
        return [(pixels, self.images.labels[own].long())]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the cross entropy. See :meth:`Task.loss`."""
        x, y = batch
        return functional.cross_entropy(model(x), y)

    def metrics(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Return the "error", the cross entropy in evaluation mode. See :meth:`Task.metrics`."""
        model.eval()
        with torch.no_grad():
            error = self.loss(model, batch)
        model.train()
        return {"error": error}
