"""The loss of an ordinary network on a batch, as a function of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaopt.randomness import same_randomness
from metaopt.symmetry.move import with_values

LossOnBatch = Callable[[Tensor, Tensor], Tensor]
"""(the model's output, y) -> the loss, a scalar."""


class NetworkLoss:
    """Of the parameters ``names``, in order; the others are as they are at each call.

    Buffers stay as they are, and dropout drops the same at each evaluation.
    """

    def __init__(
        self, model: nn.Module, names: Sequence[str], loss_fn: LossOnBatch, x: Tensor, y: Tensor
    ) -> None:
        self.model, self.names, self.loss_fn, self.x, self.y = model, names, loss_fn, x, y
        self.seed = torch.random.initial_seed()

    def __call__(self, values: Sequence[Tensor]) -> Tensor:
        """The loss, a scalar."""
        with same_randomness(self.seed):
            tensors = with_values(self.model, self.names, values)
            return self.loss_fn(functional_call(self.model, tensors, (self.x,)), self.y)
