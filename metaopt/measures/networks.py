"""Count how much memory a network's features take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metaopt.symmetry.functional import evaluating


@torch.no_grad()
def activations(model: nn.Module, x: Tensor) -> int:
    """Count the numbers in the outputs of all modules of a model that contain no others.

    Args:
        model: called once, in evaluation mode.
        x: its input.
    """
    total = 0

    def count(module: nn.Module, arguments: Any, result: Any) -> None:
        nonlocal total
        total += result.numel() if isinstance(result, Tensor) else 0

    leaves = [module for module in model.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(count) for module in leaves]
    try:
        with evaluating(model):
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return total
