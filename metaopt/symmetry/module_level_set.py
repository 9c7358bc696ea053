"""Level-set teleportation of an ordinary network: no group, any smooth model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metaopt.symmetry.level_set import LevelSetClimb, LevelSetTeleport
from metaopt.symmetry.loss import LossOnBatch, NetworkLoss
from metaopt.symmetry.objectives import LossFunction


def module_loss(
    model: nn.Module, loss_fn: LossOnBatch, x: Tensor, y: Tensor
) -> tuple[list[nn.Parameter], LossFunction]:
    """The parameters of a module that need a gradient, and its loss on a batch as their function.

    Buffers stay as they are, and dropout drops the same at each evaluation.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return list(named.values()), NetworkLoss(model, list(named), loss_fn, x, y)


def teleport_module(
    model: nn.Module,
    loss_fn: LossOnBatch,
    x: Tensor,
    y: Tensor,
    search: LevelSetTeleport | None = None,
) -> LevelSetClimb:
    """Move a module's weights to where the search ends on a batch, in place.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(9, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)
        ... )
        >>> x, y = torch.rand(8, 9), torch.arange(8) % 2
        >>> climb = teleport_module(model, torch.nn.CrossEntropyLoss(), x, y)
        >>> bool(climb.losses.max() <= climb.losses[0] * (1 + 1e-4))
        True
    """
    parameters, loss = module_loss(model, loss_fn, x, y)
    climb = (search or LevelSetTeleport())(parameters, loss)
    with torch.no_grad():
        for parameter, value in zip(parameters, climb.parameters, strict=True):
            parameter.copy_(value)
    return climb
