"""Kinks of a network, and steps with momentum across them.

The output of a network with ReLU, max pooling and the like has kinks, where its derivative jumps.
With many samples there are kinks at all distances, and a model that is made on one side of them
can be wrong at any length of step. A trust region then shrinks to nothing where the gradient is
still long. Steps with momentum (Polyak, 1964) average the gradients of many sides and go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from metaopt.learned.kronecker import spread
from metaopt.symmetry.activations import Activation

RATE, MOMENTUM = 0.7, 0.95  # of a step, and of the last one that is made again

KINKED = frozenset(
    name + "Backward"
    for name in (
        "Abs",
        "AdaptiveMaxPool1D",
        "AdaptiveMaxPool2D",
        "AdaptiveMaxPool3D",
        "Amax",
        "Amin",
        "Aminmax",
        "Clamp",
        "ClampMax",
        "ClampMin",
        "Cummax",
        "Cummin",
        "Fmax",
        "Fmin",
        "FractionalMaxPool2D",
        "FractionalMaxPool3D",
        "Hardshrink",
        "Hardsigmoid",
        "Hardswish",
        "Hardtanh",
        "Kthvalue",
        "LeakyRelu",
        "Max",
        "MaxPool2DWithIndices",
        "MaxPool3DWithIndices",
        "Maximum",
        "Median",
        "Min",
        "Minimum",
        "PreluKernel",
        "Relu",
        "RreluWithNoise",
        "Softshrink",
        "Sort",
        "Threshold",
        "Topk",
    )
)
"""Nodes of autograd whose derivatives jump, without the digits at the ends of their names."""


def has_kinks(output: Tensor) -> bool:
    """Return whether an operation with kinks leads to a tensor, as far as autograd has seen.

    It goes by the names of operations. A kink that is made by a choice, such as torch.where, is not
    seen; and operations such as the absolute value count as kinks where what follows smooths them.

    Args:
        output: what was computed.
    """
    found: set[Node] = set()
    waiting = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in found:
            continue
        name = node.name().rstrip("0123456789")
        if name in KINKED or (name == "EluBackward" and _bends(node)):
            return True
        found.add(node)
        waiting += [following for following, _ in node.next_functions]
    return False


def _bends(node: Any) -> bool:
    """Whether an ELU has another slope on the left of 0 than on the right, as SELU has."""
    return bool(node._saved_alpha * node._saved_input_scale != 1)


@torch.inference_mode(False)
def is_kinked(activation: Activation) -> bool:
    """Return whether an activation has kinks.

    Args:
        activation: the activation sigma.
    """
    with torch.enable_grad():
        return has_kinks(activation(torch.zeros(1).requires_grad_()))


def with_momentum(step: Tensor, last: Tensor, coasting: Sequence[bool]) -> Tensor:
    """Return the steps of tasks, with momentum for those that coast.

    Args:
        step: ``(*batch, coefficients)``.
        last: the last one.
        coasting: which tasks do.
    """
    these = spread(step.new_tensor(coasting, dtype=torch.bool), step.shape[:-1], step)
    return torch.where(these, RATE * step + MOMENTUM * last, step)
