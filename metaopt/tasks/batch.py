"""What inner optimizers are run on: a batch of independent problems in one module."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Protocol

from torch import Tensor, nn

from metaopt.symmetry.chain import LayerChain


class TaskBatch(nn.Module):  # not an ABC, which ``higher`` cannot patch
    """Every parameter has the problems of the batch in its first dimension.

    Attributes:
        chain: how the parameters are a chain of layers; without layers where they are none.
        x: the chain's input, ``(B, input, samples)``.
    """

    chain: LayerChain
    x: Tensor

    @property
    def batch(self) -> int:
        """The number of problems, B."""
        return self.x.shape[0]

    def forward(self, step: int = 0) -> Tensor:
        """The losses at the weights as they are, on the data of this step, ``(B,)``."""
        raise NotImplementedError


class TaskFamily(Protocol):
    """Draws problems; the same seed always gives the same problem, whatever is beside it."""

    @property
    def coordinates(self) -> int:
        """The number of weights of one problem."""

    def sample(self, seeds: Iterable[int]) -> TaskBatch:
        """One problem a seed."""


def layer_shapes(inputs: int, hidden: int, output: int, depth: int) -> list[tuple[int, int]]:
    """(out, in) of W_1 ... W_L."""
    widths = [inputs, *[hidden] * (depth - 1), output]
    return [(out, fan_in) for fan_in, out in pairwise(widths)]
