"""Losses as functions of the network's output: their curvature, and how they are recognised.

A loss is a sum over samples, times a number that is its unit. In that unit the Hessian in the
output of a sample is I for the squared error 1/2 ||y - f||^2, diag(p) - p p^T with p = softmax(f)
for the cross entropy, and diag(p (1 - p)) with p = sigmoid(f) for the binary cross entropy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

TOLERANCE = 1e-3  # of a gradient over its norm, to be that of a loss
ROUNDING = 8.0  # of an entry of a gradient in its unit, in units of the precision
FEWEST = 4  # entries of an output; fewer would fit any loss


Function = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class OutputLoss:
    """A loss as a function of the outputs of a network, which are columns.

    Attributes:
        name: of the loss.
        product: (f, v) -> H v, with f ``(*batch, out, samples)`` and v of that shape, or with
            further dimensions before the last two.
        terms: (f, y) -> the terms that the loss is the sum of, with y the targets, of f's shape.
        gradient: (f, y) -> the gradient in f.
        root: (f, v) -> R v with R R^T = H, for v as for ``product``.
        mean: f -> the mean of H over samples, ``(*batch, out, out)``.
    """

    name: str
    product: Function = field(repr=False)
    terms: Function = field(repr=False)
    gradient: Function = field(repr=False)
    root: Function = field(repr=False)
    mean: Callable[[Tensor], Tensor] = field(repr=False)

    def __reduce__(self) -> tuple[Callable[[str], OutputLoss], tuple[str]]:
        """Return what copies and pickles it: the one of this name."""
        return _of_name, (self.name,)


def _of_square(outputs: Tensor, v: Tensor) -> Tensor:
    return v


def _of_softmax(outputs: Tensor, v: Tensor) -> Tensor:
    p = outputs.softmax(dim=-2)
    pv = p * v
    return pv - p * pv.sum(dim=-2, keepdim=True)


def _of_sigmoid(outputs: Tensor, v: Tensor) -> Tensor:
    p = outputs.sigmoid()
    return p * (1 - p) * v


def _root_of_softmax(outputs: Tensor, v: Tensor) -> Tensor:
    p = outputs.softmax(dim=-2)
    scaled = p.sqrt() * v
    return scaled - p * scaled.sum(dim=-2, keepdim=True)


def _root_of_sigmoid(outputs: Tensor, v: Tensor) -> Tensor:
    p = outputs.sigmoid()
    return (p * (1 - p)).sqrt() * v


def _mean_of_square(outputs: Tensor) -> Tensor:
    return torch.eye(outputs.shape[-2], dtype=outputs.dtype, device=outputs.device)


def _mean_of_softmax(outputs: Tensor) -> Tensor:
    p = outputs.softmax(dim=-2)
    return torch.diag_embed(p.mean(dim=-1)) - p @ p.mT / p.shape[-1]


def _mean_of_sigmoid(outputs: Tensor) -> Tensor:
    p = outputs.sigmoid()
    return torch.diag_embed((p * (1 - p)).mean(dim=-1))


SQUARE = OutputLoss(
    "squared error",
    _of_square,
    lambda f, y: 0.5 * (f - y).square(),
    lambda f, y: f - y,
    _of_square,
    _mean_of_square,
)
SOFTMAX = OutputLoss(
    "cross entropy",
    _of_softmax,
    lambda f, y: -y * f.log_softmax(dim=-2),
    lambda f, y: f.softmax(dim=-2) - y,
    _root_of_softmax,
    _mean_of_softmax,
)
SIGMOID = OutputLoss(
    "binary cross entropy",
    _of_sigmoid,
    lambda f, y: functional.softplus(f) - y * f,
    lambda f, y: f.sigmoid() - y,
    _root_of_sigmoid,
    _mean_of_sigmoid,
)
NORM = replace(SQUARE, name="norm")  # ||y - f||, the root of twice the squared error
"""Losses; of the last one, what is said holds for half its square."""

KINDS = (SQUARE, SOFTMAX, SIGMOID, NORM)


def _of_name(name: str) -> OutputLoss:
    return next(own for own in KINDS if own.name == name)


class Recognised(NamedTuple):
    """A loss that was recognised from the gradient in the output.

    Attributes:
        loss: which one it is.
        unit: its unit: 1 / samples, for a mean over samples.
        value: its value in that unit, a sum over samples.
        targets: y, ``(out, samples)``, in float64.
    """

    loss: OutputLoss
    unit: float
    value: float
    targets: Tensor


def in_columns(output: Tensor) -> Tensor:
    """Return an output with a sample in each column, ``(out, samples)``.

    Args:
        output: with the outputs of a sample in the last dimension; of one dimension, one for each
            sample.
    """
    return output.reshape(-1, output.shape[-1] if output.dim() > 1 else 1).mT


@torch.no_grad()
def recognise(output: Tensor, gradient: Tensor) -> Recognised | None:
    """Return the loss whose gradient this is, if it is a cross entropy of hard labels.

    The gradient of a cross entropy is p - y times its unit, with p known from the output. So the
    labels y and the unit are known from it, and where all entries agree on the unit, it is that
    loss. Weights of classes or samples, and smoothed labels, are not recognised.

    Args:
        output: the network's output F, with the classes, or the logits, in the last dimension.
        gradient: dL/dF, of its shape.

    Returns:
        The loss; None if it is another one.

    Example:
        >>> import torch
        >>> f = torch.tensor([[1.0, 0.0, 2.0], [0.5, 3.0, 0.0]], requires_grad=True)
        >>> torch.nn.functional.cross_entropy(f, torch.tensor([2, 0])).backward()
        >>> round(recognise(f, f.grad).unit, 6)
        0.5
    """
    if output.dim() < 2 or output.numel() < FEWEST:
        return None
    precision = max(torch.finfo(own.dtype).eps for own in (output, gradient))
    f, g = (in_columns(own.detach()).double() for own in (output, gradient))
    kinds = (SOFTMAX, SIGMOID) if len(f) > 1 else (SIGMOID,)
    return next((own for loss in kinds if (own := _recognised(loss, f, g, precision))), None)


def _recognised(loss: OutputLoss, f: Tensor, g: Tensor, precision: float) -> Recognised | None:
    if loss is SOFTMAX:  # where p - y is rounded to 0, the class is that of the largest output
        told = (g < 0).any(dim=0)
        label = torch.where(told, g.argmin(dim=0), f.argmax(dim=0))
        y = functional.one_hot(label, len(g)).mT.double()
    else:
        y = ((g < 0) | ((g == 0) & (f > 0))).double()
    expected = loss.gradient(f, y)
    unit = g.abs().sum() / expected.abs().sum()
    tolerance = max(TOLERANCE, 4 * precision)
    allowed = tolerance * g.norm() + ROUNDING * precision * unit * g.numel() ** 0.5
    if not (unit > 0 and unit.isfinite() and (g - unit * expected).norm() <= allowed):
        return None
    return Recognised(loss, float(unit), float(loss.terms(f, y).sum()), y)
