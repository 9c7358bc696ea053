"""The cells of the zoo: kinds of networks and data, each with eight networks."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch

from metaopt.tasks import NetworkFamily

ACTIVATIONS = ("relu", "leaky_relu", "steep_leaky_relu", "tanh", "gelu", "sigmoid")
DEPTHS = (2, 3, 4)
SAMPLES = (0.5, 3.0, 12.0)  # over the width
TARGETS = ("teacher", "random", "classes")
NETWORKS = 8
CLASSES = 4


@dataclass(frozen=True)
class Cell:
    """One kind of network, with a kind of data.

    Attributes:
        bias: whether layers have a bias.
        activation: of the hidden layers.
        depth: number of layers.
        samples: number of samples over the width.
        target: "teacher" for the outputs of another network plus noise, "random" for noise, both
            with the squared error, and "classes" for the cross entropy of a teacher's classes.
    """

    bias: bool
    activation: str
    depth: int
    samples: float
    target: str

    @property
    def name(self) -> str:
        """The cell in words, which names its file."""
        bias = "bias" if self.bias else "none"
        return f"{bias}-{self.activation}-{self.depth}-{self.samples:g}-{self.target}"

    def family(self, dtype: str = "float32") -> NetworkFamily:
        """Return the networks; their sizes are drawn from the cell's place in the zoo.

        Args:
            dtype: of the weights.
        """
        generator = torch.Generator().manual_seed(CELLS.index(self))

        def whole(low: int, high: int) -> int:
            return int(torch.randint(low, high + 1, (), generator=generator))

        width, inputs, outputs = whole(16, 32), whole(8, 20), whole(1, 4)
        classes = self.target == "classes"
        return NetworkFamily(
            input=inputs,
            hidden=width,
            output=CLASSES if classes else outputs,
            depth=self.depth,
            samples=max(4, round(self.samples * width)),
            activation=self.activation,
            bias=self.bias,
            teacher=0.0 if self.target == "random" else 1.0,
            noise=1.0 if self.target == "random" else 0.1,
            loss="cross_entropy" if classes else "half_squared",
            dtype=dtype,
        )


CELLS = tuple(Cell(*kind) for kind in product((True, False), ACTIVATIONS, DEPTHS, SAMPLES, TARGETS))
"""All cells, in order."""


def shuffled(seed: int = 0) -> list[Cell]:
    """Return all cells in a random order, so that the first ones stand for all.

    Args:
        seed: of the order.
    """
    order = torch.randperm(len(CELLS), generator=torch.Generator().manual_seed(seed))
    return [CELLS[index] for index in order.tolist()]
