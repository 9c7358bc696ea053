"""Kinks of a network, and steps with momentum across them.

The output of a network with ReLU, max pooling and the like has kinks, where its derivative jumps.
With many samples there are kinks at all distances, and a model that is made on one side of them
can be wrong at any length of step. A trust region then shrinks to nothing where the gradient is
still long. Steps with momentum (Polyak, 1964) average the gradients of many sides and go on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import Node

from metaopt.learned.kronecker import spread
from metaopt.symmetry.activations import Activation

RATE, MOMENTUM = 0.7, 0.95  # of a step, and of the last one that is made again

KINKED = (
    "Abs",
    "Amax",
    "Clamp",
    "Hardshrink",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "LeakyRelu",
    "Max",
    "Prelu",
    "Relu",
    "Rrelu",
    "Softshrink",
    "Threshold",
)
"""What names of the nodes of autograd begin with whose derivatives jump."""


def has_kinks(output: Tensor) -> bool:
    """Return whether an operation with kinks leads to a tensor, as far as autograd has seen.

    Args:
        output: what was computed.
    """
    found: set[Node] = set()
    waiting = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in found:
            continue
        if node.name().startswith(KINKED):
            return True
        found.add(node)
        waiting += [following for following, _ in node.next_functions]
    return False


@torch.inference_mode(False)
def is_kinked(activation: Activation) -> bool:
    """Return whether an activation has kinks.

    Args:
        activation: the activation sigma.
    """
    with torch.enable_grad():
        return has_kinks(activation(torch.zeros(1).requires_grad_()))


def with_momentum(
    steps: Sequence[Tensor], last: Sequence[Tensor], coasting: Sequence[bool]
) -> list[Tensor]:
    """Return the steps of layers, with momentum for the tasks that coast.

    Args:
        steps: of each layer, ``(*batch, out, in + 1)``.
        last: the last ones.
        coasting: which tasks do.
    """
    batch, pairs = steps[0].shape[:-2], zip(steps, last, strict=True)
    rate = steps[0].new_tensor([RATE if own else 1.0 for own in coasting])
    kept = steps[0].new_tensor([MOMENTUM if own else 0.0 for own in coasting])
    return [
        step * spread(rate, batch, step) + before * spread(kept, batch, step)
        for step, before in pairs
    ]
