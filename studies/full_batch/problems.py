"""Regressions on real data: tables, the pixels of an image, and ten samples of a sine.

The networks are ordinary ones in float32, with torch's own initial weights.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, ClassVar, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from metaopt.extras import extra
from metaopt.randomness import same_randomness
from metaopt.tasks import Task
from metaopt.tasks.data import Images, standardized

Rows = tuple[Tensor, Tensor]
"""Inputs ``(n, in)`` and targets ``(n, out)``."""

STEPPED_ON = 0.75  # of the rows


def network(
    seed: int, widths: Sequence[int], activation: type[nn.Module] = nn.Tanh
) -> nn.Sequential:
    """Return Linear layers with an activation between.

    Args:
        seed: of the weights.
        widths: of the input, the hidden layers and the output.
        activation: between layers.
    """
    with same_randomness(seed):
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers[:-1])


class Regression(Task):
    """A mean squared error on rows, some of which are held out.

    What is held out is the same for "validation" and "test". Whoever chooses by one and reports the
    other takes other seeds.
    """

    widths: tuple[int, ...]
    activation: type[nn.Module] = nn.Tanh

    @abstractmethod
    def rows(self, seed: int) -> tuple[Rows, Rows]:
        """Return the rows to step on, and those that are held out.

        Args:
            seed: chooses which are which.
        """

    def model(self, seed: int) -> nn.Module:
        """Return the network. See :meth:`Task.model`."""
        return network(seed, self.widths, self.activation)

    def batches(self, seed: int, split: str) -> Iterable[Rows]:
        """Return one batch of all rows. See :meth:`Task.batches`."""
        stepped_on, held_out = self.rows(seed)
        return [stepped_on if split == "train" else held_out]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean squared error. See :meth:`Task.loss`."""
        x, y = batch
        return functional.mse_loss(model(x), y)

    def metrics(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Return the "error", which is the loss. See :meth:`Task.metrics`."""
        return {"error": self.loss(model, batch)}


@final
class Table(Regression):
    """A table of scikit-learn, in units of each column's standard deviation; 3/4 are stepped on.

    Args:
        name: "diabetes", 442 rows of 10 inputs, or "linnerud", 20 rows of 3.
    """

    HIDDEN: ClassVar[dict[str, int]] = {"diabetes": 32, "linnerud": 16}

    def __init__(self, name: str) -> None:
        with extra("studies"):
            from sklearn import datasets
        x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
        self.x, self.y = _in_units(x), _in_units(y.reshape(len(y), -1))
        self.widths = (self.x.shape[1], self.HIDDEN[name], self.y.shape[1])

    def rows(self, seed: int) -> tuple[Rows, Rows]:
        """Divide the rows at random. See :meth:`Regression.rows`."""
        return _divided(self.x, self.y, seed)


@final
class Image(Regression):
    """The grey of the pixels of one digit as a function of their coordinates; 3/4 are stepped on.

    Args:
        images: a seed draws one of them.
    """

    widths = (2, 48, 48, 1)

    def __init__(self, images: Images) -> None:
        self.pixels = images.pixels

    def rows(self, seed: int) -> tuple[Rows, Rows]:
        """Draw an image, and divide its pixels at random. See :meth:`Regression.rows`."""
        generator = torch.Generator().manual_seed(seed)
        index = int(torch.randint(len(self.pixels), (), generator=generator))
        grey = standardized(self.pixels[index : index + 1])[0, 0]
        axes = [torch.linspace(-1, 1, size) for size in grey.shape]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        return _divided(places.reshape(-1, 2), grey.reshape(-1, 1), seed)


@final
class Sinusoid(Regression):
    """Ten samples of a sine of unknown amplitude and phase, and 100 others that are held out.

    Source: Finn, Abbeel and Levine (2017), arXiv 1703.03400, section 5.1: the network starts
    untrained here.
    """

    widths = (1, 40, 40, 1)
    activation = nn.ReLU

    def rows(self, seed: int) -> tuple[Rows, Rows]:
        """Draw the sine, and samples on [-5, 5]. See :meth:`Regression.rows`."""
        generator = torch.Generator().manual_seed(seed)

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(shape, generator=generator)

        amplitude, phase = uniform(0.1, 5.0), uniform(0.0, math.pi)
        few, many = uniform(-5.0, 5.0, 10, 1), uniform(-5.0, 5.0, 100, 1)
        return (
            (few, amplitude * torch.sin(few + phase)),
            (many, amplitude * torch.sin(many + phase)),
        )


def _in_units(columns: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy((columns - columns.mean(axis=0)) / columns.std(axis=0))


def _divided(x: Tensor, y: Tensor, seed: int) -> tuple[Rows, Rows]:
    """3/4 of the rows, drawn at random, and the others, in float32."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    first = int(STEPPED_ON * len(x))
    stepped_on, held_out = (
        (x[part].float(), y[part].float()) for part in (order[:first], order[first:])
    )
    return stepped_on, held_out
