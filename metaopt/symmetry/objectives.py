"""What a teleport maximises along the orbit; each problem of a batch has its own value."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from metaopt.chain import Layer, LayerChain

LossFunction = Callable[[Sequence[Tensor]], Tensor]
"""Parameters of the chain, in order -> losses ``(*batch,)``."""

Objective = Callable[[LayerChain, Sequence[Layer], LossFunction], Tensor]
"""Layers at g.w -> value ``(*batch,)``, differentiable in the layers."""


def gradient_norm(chain: LayerChain, layers: Sequence[Layer], loss: LossFunction) -> Tensor:
    """||grad L||^2, ``(*batch,)`` (eq. 3)."""
    # Views: where a layer depends on an earlier one, the inner gradient must not lead there.
    parameters = [
        p.view_as(p) if p.requires_grad else p.detach().requires_grad_()
        for p in chain.parameters(layers)
    ]
    gradients = torch.autograd.grad(loss(parameters).sum(), parameters, create_graph=True)
    squares = [g.square().flatten(start_dim=chain.batch_dims).sum(-1) for g in gradients]
    return torch.stack(squares).sum(dim=0)
