"""The interfaces of tasks: a batch of independent ones in a module, and what draws them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Protocol, Self

import torch
from torch import Tensor

from metaopt.output_loss import SQUARE, OutputLoss
from metaopt.symmetry.chain import ChainModule


class TaskBatch(ChainModule):
    """A batch of B independent tasks as one module, whose parameters hold those of all tasks.

    The first dimension of every parameter is the task. A subclass defines the losses by
    :meth:`forward`.

    Attributes:
        chain: the layers that the parameters form, in order. It has no layers where the parameters
            are not a plain chain.
        x: the input of the chain, ``(B, input, samples)``.
        output_loss: what the losses are as a function of the chain's output; they are sums over
            samples.
        total_steps: how many steps the run is going to have, for schedules; 0 if it is not known.
        kept_batches: how many of the last steps' batches are kept, where they are drawn from a
            stream, for what goes back to earlier steps.
    """

    output_loss: OutputLoss = SQUARE
    total_steps: int = 0
    kept_batches: int = 1

    @property
    def batch(self) -> int:
        """The number of tasks, B."""
        return self.x.shape[0]

    def forward(self, step: int = 0) -> Tensor:
        """Return the losses at the present weights.

        Args:
            step: the number of the step, from 0. Tasks on minibatches take its minibatch.

        Returns:
            One loss a task, ``(B,)``.
        """
        raise NotImplementedError

    def changing(self) -> list[str]:
        """Return the names of the buffers that a forward pass changes; none by default."""
        return []

    def select(self, indices: Sequence[int]) -> Self:
        """Return a copy that holds some of the tasks as they are now; a task may come again.

        Args:
            indices: of the tasks, in order.
        """
        chosen = copy.deepcopy(self)
        for tensor in (*chosen.parameters(), *chosen.buffers()):
            tensor.grad = None
            tensor.data = tensor.data[list(indices)]
        return chosen

    def gradient_norms(self) -> Tensor:
        """Return the norm of the gradient of each task, float64 ``(B,)``."""
        squares = [
            p.grad.double().square().sum(dim=tuple(range(1, p.dim())))
            for p in self.parameters()
            if p.grad is not None
        ]
        return torch.stack(squares).sum(dim=0).sqrt()


class TaskSampler(Protocol):
    """What gives batches of tasks. A seed gives the same task, whatever it is batched with."""

    @property
    def coordinates(self) -> int:
        """The number of weights of one task."""

    def sample(self, seeds: Iterable[int]) -> TaskBatch:
        """Draw one task a seed, as one batch.

        Args:
            seeds: integers from 0 to 2^63 - 1, at least one.
        """


def layer_shapes(inputs: int, hidden: int, output: int, depth: int) -> list[tuple[int, int]]:
    """Return the shapes (out, in) of the weights W_1 ... W_L of a network.

    Args:
        inputs: features of a sample.
        hidden: units of each hidden layer.
        output: units of the last layer.
        depth: the number of layers, L.
    """
    widths = [inputs, *[hidden] * (depth - 1), output]
    return [(out, fan_in) for fan_in, out in pairwise(widths)]
