"""What an LSTM sees of the coefficients of gradients in the eigenbasis of the curvature.

The coefficients of all layers are one row: those of the first layer, task after task, then those of
the second.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metaopt.learned.kronecker import TINY
from metaopt.learned.trust_region import Judged
from metaopt.learned.without_graph import without_graph

CHANNELS = 9


@without_graph
def channels_of(
    curvatures: Sequence[Tensor], last: Tensor, g: Tensor, verdicts: Sequence[Judged]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the LSTM sees of the coefficients of all layers, and their curvatures.

    Args:
        curvatures: of each layer.
        last: the coefficients of the last step.
        g: those of the gradient.
        verdicts: of the tasks.

    Returns:
        The channels, ``(channels, coefficients)``; for each coefficient k / max k and max k.
    """
    layers, tasks = len(curvatures), len(verdicts)
    sizes = [own.numel() for own in curvatures]
    along = last * g  # its sign, and 0 where there is only rounding
    both = torch.stack((torch.cat([own.reshape(-1) for own in curvatures]), along.abs()))
    largest = [
        own.reshape(2, tasks, -1).amax(dim=-1) for own in both.split_with_sizes(sizes, dim=1)
    ]
    shown = [[verdict.loss, *verdict.trust.shown(verdict.loss)] for verdict in verdicts]
    numbers = [
        [*own, layers / 4 - 0.5, place / max(1, layers - 1) - 0.5]
        for place in range(layers)
        for own in shown
    ]
    of_tasks = torch.tensor(numbers, dtype=g.dtype, device=g.device).mT
    spread_out = _spread_out(torch.cat((torch.cat(largest, dim=1), of_tasks)), sizes, tasks)
    most, peak, losses = spread_out[:3].unbind()
    most = most + TINY
    relative = both[0] / most
    explained = g.square() / ((relative + 1e-6) * most * losses + TINY)
    logs = torch.stack((relative, explained)).add_(1e-12).log_().div_(10).add_(1)
    sign = along / both[1].add_(peak, alpha=1e-6).add_(TINY)
    channels = torch.cat((logs, sign.unsqueeze(0), spread_out[3:]))
    return channels.nan_to_num_(0.0, 5.0, -5.0).float(), relative, most


def mean_of_tasks(row: Tensor, sizes: Sequence[int], tasks: int) -> Tensor:
    """Return the mean over the coefficients of each task, ``(tasks,)``.

    Args:
        row: ``(coefficients,)``.
        sizes: how many there are of each layer, in all tasks.
        tasks: their number.
    """
    if tasks == 1:
        return row.mean(dim=0, keepdim=True)
    sums = [part.view(tasks, -1).sum(dim=1) for part in row.split_with_sizes(sizes)]
    return torch.stack(sums).sum(dim=0) * (tasks / len(row))


def _spread_out(of_tasks: Tensor, sizes: Sequence[int], tasks: int) -> Tensor:
    """Numbers of each layer and task, ``(rows, layers * tasks)``, for each coefficient."""
    parts = [
        own.unsqueeze(-1).expand(-1, -1, size // tasks).reshape(len(own), -1)
        for own, size in zip(
            of_tasks.split_with_sizes([tasks] * len(sizes), dim=1), sizes, strict=True
        )
    ]
    return torch.cat(parts, dim=1)
