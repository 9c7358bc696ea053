"""Compute a loss of the outputs of many networks at a time."""

from __future__ import annotations

from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional

from metaopt.measures.around import ColumnLoss
from metaopt.symmetry.functional import LossOnBatch


def of_columns(loss_fn: LossOnBatch, y: Tensor) -> ColumnLoss:
    """Turn a loss of one output with samples in rows into one of many with samples in columns.

    Plain cross entropy is computed on the columns as they are stored, which is 14 times faster than
    transposing them.

    Args:
        loss_fn: (output ``(samples, out)``, y) -> scalar.
        y: the targets, the same for all outputs.

    Returns:
        A function from ``(*points, out, samples)`` to ``(*points,)``.
    """
    classes = y.dim() == 1 and not y.is_floating_point() and bool((y >= 0).all())
    if classes and _is_plain_cross_entropy(loss_fn):
        return lambda output: cross_entropy(output, y)

    def losses(output: Tensor) -> Tensor:
        flat = output.reshape(-1, *output.shape[-2:])
        values = vmap(lambda columns: loss_fn(columns.mT, y), randomness="same")(flat)
        return values.reshape(output.shape[:-2])

    return losses


def cross_entropy(output: Tensor, y: Tensor) -> Tensor:
    """Compute the cross entropy, averaged over samples.

    Args:
        output: logits, ``(*points, classes, samples)``.
        y: classes, ``(samples,)``, the same for all points.

    Returns:
        ``(*points,)``.
    """
    flat = output.reshape(-1, *output.shape[-2:])
    each = functional.cross_entropy(flat, y.expand(len(flat), -1), reduction="none")
    return each.mean(dim=-1).reshape(output.shape[:-2])


def _is_plain_cross_entropy(loss_fn: object) -> bool:
    """Return whether a loss is the mean cross entropy, with all classes of equal weight."""
    if loss_fn is functional.cross_entropy:
        return True
    return (
        type(loss_fn) is nn.CrossEntropyLoss
        and loss_fn.weight is None
        and loss_fn.reduction == "mean"
        and loss_fn.label_smoothing == 0
        and loss_fn.ignore_index < 0
    )
