"""What a teleport maximises along the orbit; each problem of a batch has its own value."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

LossFunction = Callable[[Sequence[Tensor]], Tensor]
"""Parameters, in order -> losses ``(*batch,)``; that of a problem depends on its weights alone."""

Objective = Callable[[Sequence[Tensor], LossFunction], Tensor]
"""Parameters at g.w, and the loss -> value ``(*batch,)``, differentiable in the parameters."""


def gradient_norm(parameters: Sequence[Tensor], loss: LossFunction) -> Tensor:
    """||grad L||^2, ``(*batch,)`` (eq. 3)."""
    # Views: where a layer depends on an earlier one, the inner gradient must not lead there.
    own = [p.view_as(p) if p.requires_grad else p.detach().requires_grad_() for p in parameters]
    losses = loss(own)
    gradients = torch.autograd.grad(losses.sum(), own, create_graph=True)
    return entry_sum([g.square() for g in gradients], losses.dim())


def entry_sum(tensors: Sequence[Tensor], batch_dims: int) -> Tensor:
    """The sum over all entries of all tensors of each problem, ``(*batch,)``."""
    sums = [t.unsqueeze(-1).flatten(start_dim=batch_dims).sum(-1) for t in tensors]
    return torch.stack(sums).sum(dim=0)
