"""The loss of an ordinary network on a batch, as a function of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaopt.network.move import with_values
from metaopt.randomness import same_randomness
from metaopt.symmetry.objectives import LossFunction

LossOnBatch = Callable[[Tensor, Tensor], Tensor]
"""(the model's output, y) -> the loss, a scalar."""


def loss_on(
    model: nn.Module, names: Sequence[str], loss_fn: LossOnBatch, x: Tensor, y: Tensor
) -> LossFunction:
    """Of the parameters ``names``, in order; the others are as they are at each call.

    Buffers stay as they are, and dropout drops the same at each evaluation.
    """
    seed = torch.random.initial_seed()

    def loss(values: Sequence[Tensor]) -> Tensor:
        with same_randomness(seed):
            return loss_fn(functional_call(model, with_values(model, names, values), (x,)), y)

    return loss
