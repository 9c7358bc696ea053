"""The minimum of the Gauss-Newton model of a loss over a few directions of each layer.

J d is computed for each direction d by a forward pass of tangents. So the model

    <g, d> + 1/2 d^T (J^T H J + P) d + nu/2 sum_l k_l ||d_l||^2

is exact in their span, with H the Hessian of the loss in the output, P the diagonal curvature of
penalties beside it, and k_l the mean curvature of layer l (Martens and Grosse, 2015, sections 6.4
and 7).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from metaopt.learned.kronecker import TINY, norm
from metaopt.learned.network_pass import Derivatives
from metaopt.learned.without_graph import without_graph
from metaopt.output_loss import SQUARE, OutputLoss

RIDGE = 1e-9  # of the diagonal of the small problem
SMALLEST = 0.03  # root mean square of the weights that is assumed there, as biases start at 0


class Model(NamedTuple):
    """The model of the loss along directions, for each task; all without a graph.

    Attributes:
        slope: of the loss along each, ``(*batch, directions)``.
        product: <J d, H J d'>, with what penalties add, ``(*batch, directions, directions)``.
        metric: k_l <d, d'> of directions of one layer, and 0 of others.
        tangents: J d, ``(*batch, directions, out samples)``.
    """

    slope: Tensor
    product: Tensor
    metric: Tensor
    tangents: Tensor


@without_graph
def model_of(
    at: Derivatives,
    directions: Sequence[Tensor],
    gradients: Sequence[Tensor],
    means: Sequence[Tensor],
    loss: OutputLoss,
    penalised: Sequence[Tensor] | None = None,
) -> Model:
    """Return the model along directions of single layers, as many of each.

    Args:
        at: the derivatives of the output where the step begins.
        directions: d, ``(*batch, directions, out, in + 1)`` of each layer.
        gradients: ``(*batch, out, in + 1)`` of each layer.
        means: the mean curvature of each layer, ``(*batch,)``.
        loss: of the outputs.
        penalised: P d of each layer, of the shape of the directions; None without penalties.
    """
    j = at.tangents(directions)
    flat = j.flatten(start_dim=-2)
    hj = flat
    if loss.product is not SQUARE.product:
        hj = loss.product(at.outputs.unsqueeze(-3), j).flatten(start_dim=-2)
    grams = []
    for own, g in zip(directions, gradients, strict=True):
        rows = torch.cat((own, g.unsqueeze(-3)), dim=-3).flatten(start_dim=-2)
        grams.append(rows[..., :-1, :] @ rows.mT)
    joint = torch.stack(grams)  # (layers, *batch, directions, directions + 1)
    metric = joint[..., :-1] * torch.stack(list(means))[..., None, None]
    slope = joint[..., -1].movedim(0, -2).flatten(start_dim=-2)
    product = flat @ hj.mT
    if penalised is not None:
        pairs = zip(directions, penalised, strict=True)
        beside = [pd.flatten(-2) @ d.flatten(-2).mT for d, pd in pairs]
        product = product + _on_diagonal(torch.stack(beside), slope)
    return Model(slope, product, _on_diagonal(metric, slope), flat)


def _on_diagonal(blocks: Tensor, slope: Tensor) -> Tensor:
    """Matrices of the directions of each layer as one, with 0 between layers."""
    whole = torch.diag_embed(blocks.movedim(0, -1), dim1=-4, dim2=-2)
    size = slope.shape[-1]
    return whole.reshape(*slope.shape[:-1], size, size)


def minimum(model: Model, nu: Tensor) -> Tensor:
    """Return the coefficients of the minimum, ``(*batch, directions)``.

    A meta-gradient goes through nu. It does not go through the rest of the model, whose solution is
    a minimum.

    Args:
        model: the model.
        nu: the damping, ``(*batch, 1, 1)`` or one for all.
    """
    damped = torch.addcmul(model.product, model.metric, nu)
    size = damped.detach().diagonal(dim1=-2, dim2=-1).clamp(min=TINY).rsqrt()
    ridge = _ridge(size.shape[-1], size.dtype, size.device)
    unit = torch.addcmul(ridge, damped, size.unsqueeze(-1) * size.unsqueeze(-2))
    solution: Tensor = torch.linalg.solve_ex(unit, (model.slope * size).unsqueeze(-1))[0]
    return -solution[..., 0] * size


def lengths(
    steps: Sequence[Tensor], weights: Sequence[Tensor], batch_dims: int
) -> list[list[float]]:
    """Return for each task the length of the step of each layer over that of its weights.

    Args:
        steps: ``(*batch, out, in + 1)`` of each layer.
        weights: of their shapes.
        batch_dims: how many leading dimensions count tasks.
    """
    matrices = [own.detach() for own in (*steps, *weights)]
    found = map(norm, matrices) if batch_dims else torch._foreach_norm(matrices)
    norms = torch.stack(list(found))
    of_tasks = norms.reshape(len(norms), -1).mT.tolist()
    least = [SMALLEST * own.shape[batch_dims:].numel() ** 0.5 for own in weights]
    count = len(least)
    return [
        [s / max(w, floor) for s, w, floor in zip(own[:count], own[count:], least, strict=True)]
        for own in of_tasks
    ]


@lru_cache
@torch.inference_mode(False)  # what is kept must serve callers outside it too
def _ridge(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return RIDGE * torch.eye(size, dtype=dtype, device=device)
