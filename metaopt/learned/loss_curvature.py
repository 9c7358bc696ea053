"""The curvature of a loss in the model's output, which is the unit of gradients.

Meta-optimizers are trained on 1/2 ||Y - F||_F^2, whose second derivative in the output F is 1. A
loss with second derivative c has gradients and Gauss-Newton matrices that are c times as large.
Gradients divided by c have the size that the networks m1 and m2 were trained on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaopt.replicas import ALONE, Replicas

SAME_SLOPE = 0.03  # of the change of dL/dF, to be that of a squared error
UNKNOWN = 1.0  # until it is measured: that of a mean over a batch is less, so steps are short


def known_curvature(loss_fn: object) -> KnownCurvature | None:
    """Return the largest second derivative of a loss in the model's output, where it is known.

    It is known for the squared error, the cross entropy (at most 1/2 for each sample), the binary
    cross entropy with logits (at most 1/4 for each entry), the Huber and the smooth L1 loss, with
    the reductions "mean" and "sum" and without weights.

    Args:
        loss_fn: a module of ``torch.nn``, or the function that does the same.

    Returns:
        A function of the output F and of dL/dF, if that is known; None where the curvature is not.

    >>> import torch
    >>> known_curvature(torch.nn.MSELoss())(torch.zeros(5, 2))
    0.2
    """
    if callable(loss_fn) and not isinstance(loss_fn, nn.Module):
        same = FUNCTIONS.get(loss_fn)
        loss_fn = None if same is None else same()  # with the same defaults
    kind = type(loss_fn)
    weighted = any(getattr(loss_fn, name, None) is not None for name in ("weight", "pos_weight"))
    if weighted or kind not in LARGEST:
        return None
    reduction = getattr(loss_fn, "reduction", None)
    if reduction not in ("mean", "sum"):
        return None
    classes = kind is nn.CrossEntropyLoss
    of_a_term, mean = LARGEST[kind](loss_fn), reduction == "mean"
    return KnownCurvature(of_a_term, mean, classes, square=kind is nn.MSELoss)


@dataclass(frozen=True)
class KnownCurvature:
    """Computes the largest second derivative of a loss in an output from that of one term.

    Attributes:
        of_a_term: the largest second derivative of one term.
        mean: whether the loss is the mean of the terms, and not their sum.
        classes: whether a term is of all classes of a sample.
        square: whether it is the squared error, whose curvature is the same everywhere.
    """

    of_a_term: float
    mean: bool
    classes: bool
    square: bool = False

    def __call__(self, output: Tensor, gradient: Tensor | None = None) -> float:
        """Return the largest second derivative for an output of this shape.

        Args:
            output: the model's output F.
            gradient: dL/dF, of its shape; None if it is not known.
        """
        if not self.mean:
            return self.of_a_term
        terms = output.numel()
        if self.classes and output.dim():
            terms //= output.shape[_class_dim(output, gradient)]
        return self.of_a_term / max(terms, 1)


def _class_dim(output: Tensor, gradient: Tensor | None) -> int:
    """The dimension of the classes: 1, as torch has it, or the last, if the user flattened F.

    The gradient of a cross entropy sums to 0 over the classes of each sample.
    """
    if output.dim() < 3 or gradient is None:
        return min(1, output.dim() - 1)
    sums = [gradient.double().sum(dim=dim).abs().sum() for dim in (1, -1)]
    return -1 if sums[1] < sums[0] else 1


FUNCTIONS: dict[Callable[..., object], type[nn.Module]] = {
    F.mse_loss: nn.MSELoss,
    F.cross_entropy: nn.CrossEntropyLoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    F.huber_loss: nn.HuberLoss,
    F.smooth_l1_loss: nn.SmoothL1Loss,
}
"""The module that does the same as a function, by function."""

LARGEST: dict[type, Callable[[object], float]] = {
    nn.MSELoss: lambda loss: 2.0,
    nn.CrossEntropyLoss: lambda loss: 0.5,
    nn.BCEWithLogitsLoss: lambda loss: 0.25,
    nn.HuberLoss: lambda loss: 1.0,
    nn.SmoothL1Loss: lambda loss: 1.0 / max(float(loss.beta), 1e-6),  # type: ignore[attr-defined]
}
"""The largest second derivative of one term of a loss, by class of the loss."""


def measured_curvature(
    before: tuple[Tensor, Tensor],
    after: tuple[Tensor, Tensor],
    known: float,
    replicas: Replicas = ALONE,
) -> float:
    """Return the curvature of the loss between two passes of the same batch.

    That is <dg, dF> / ||dF||^2 with the changes of the output F and of its gradient g = dL/dF. It
    falls by a factor of 2 at most from one measurement to the next: the next step on a loss that
    is not quadratic may meet more curvature than this one did.

    Args:
        before: F and g of the first pass, of one shape.
        after: F and g of the second pass, of the same shape.
        known: the measurement before; 0 if there was none.
        replicas: the processes that have other parts of the batch; their loss is the mean.

    Returns:
        The curvature; ``known`` where the output did not change, or where the change of g is not
        finite or says that the loss is not convex.
    """
    change, turn = _changes(before, after)
    sums = torch.stack(((turn * change).sum() / replicas.size, change.square().sum()))
    product, size = replicas.sum(sums).tolist()
    ratio = product / size if size > 0 else math.nan
    if not 0 < ratio < math.inf:
        return known
    return float(max(ratio, known / 2))


def is_square(
    before: tuple[Tensor, Tensor],
    after: tuple[Tensor, Tensor],
    curvature: float,
    known: bool,
    replicas: Replicas = ALONE,
) -> bool:
    """Return whether the loss is a squared error of the output, as far as two passes show it.

    Args:
        before: F and g = dL/dF of the first pass.
        after: F and g of the second one.
        curvature: that was measured between them.
        known: what was known before; it stays where g has changed by less than its rounding.
        replicas: the processes that have other parts of the batch.
    """
    change, turn = _changes(before, after)
    gap = (turn / replicas.size - curvature * change).square().sum()
    size, level = turn.square().sum() / replicas.size**2, after[1].double().square().sum()
    gap, size, level = replicas.sum(torch.stack((gap, size, level))).cpu().unbind()
    if size <= 1e-6 * level:
        return known
    return bool(gap <= SAME_SLOPE**2 * size)


def _changes(before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The changes of F and of dL/dF between two passes."""
    change, turn = (
        now.double() - then.to(now.device).double() for now, then in zip(after, before, strict=True)
    )
    return change, turn
