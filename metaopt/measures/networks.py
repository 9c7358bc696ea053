"""Count how much memory a network's features take."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from metaopt.symmetry.functional import call_with, evaluating
from metaopt.symmetry.nested import Inputs, arguments_of, tensors_in


@torch.no_grad()
def activations(model: nn.Module, x: Inputs) -> int:
    """Count the numbers in the outputs of all modules of a model that contain no others.

    Args:
        model: called once, in evaluation mode.
        x: what it is called with.
    """
    total = 0

    def count(module: nn.Module, arguments: Any, result: Any) -> None:
        nonlocal total
        total += sum(tensor.numel() for tensor in tensors_in(result))

    leaves = [module for module in model.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(count) for module in leaves]
    try:
        with evaluating(model):
            call_with(model, (), (), *arguments_of(x))
    finally:
        for hook in hooks:
            hook.remove()
    return total
