"""How strongly a loss is curved in the model's output: the unit of gradients and curvatures.

Meta-optimizers are trained on 1/2 ||Y - F||_F^2, whose second derivative in F is 1. A loss with
second derivative c has gradients and curvatures c times as large; divided by c they are what the
networks know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

UNKNOWN = 1.0  # until it is measured: a mean over a batch has less, so that steps are small


def known_curvature(loss_fn: object) -> Callable[[Tensor], float] | None:
    """The largest second derivative of a loss as a function of the output F; None if not known.

    Known are the mean or summed squared error, cross entropy (at most 1/2 a sample), binary cross
    entropy with logits (at most 1/4 an entry), Huber and smooth L1 loss, all without weights.

    >>> known_curvature(nn.MSELoss())(torch.zeros(5, 2))
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
    return KnownCurvature(LARGEST[kind](loss_fn), reduction == "mean", classes)


@dataclass(frozen=True)
class KnownCurvature:
    """The largest second derivative, from that of one term, as a function of the output."""

    of_a_term: float
    mean: bool
    classes: bool  # whether a term is over all classes, which are in dimension 1

    def __call__(self, output: Tensor) -> float:
        if not self.mean:
            return self.of_a_term
        terms = output.numel()
        if self.classes:
            terms //= output.shape[1] if output.dim() > 1 else terms
        return self.of_a_term / max(terms, 1)


FUNCTIONS: dict[Callable[..., object], type[nn.Module]] = {
    F.mse_loss: nn.MSELoss,
    F.cross_entropy: nn.CrossEntropyLoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    F.huber_loss: nn.HuberLoss,
    F.smooth_l1_loss: nn.SmoothL1Loss,
}
"""Functions by the module that does the same."""

LARGEST: dict[type, Callable[[object], float]] = {
    nn.MSELoss: lambda loss: 2.0,
    nn.CrossEntropyLoss: lambda loss: 0.5,
    nn.BCEWithLogitsLoss: lambda loss: 0.25,
    nn.HuberLoss: lambda loss: 1.0,
    nn.SmoothL1Loss: lambda loss: 1.0 / max(float(loss.beta), 1e-6),  # type: ignore[attr-defined]
}
"""Of one term of the sum."""


def measured_curvature(
    before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor], known: float | None
) -> float | None:
    """<dg, dF> / ||dF||^2 between two passes of the same batch, each (F, g = dL/dF).

    What came before is left behind by a factor of 2 a step at most: of a loss that is not
    quadratic, the next step may meet more than this one did.

    Args:
        known: the measurement before, if there was one.

    Returns:
        None where nothing can be said: no change, or one that is not convex or not finite.
    """
    change = after[0].double() - before[0].double()
    size = change.square().sum()
    if not size > 0:
        return known
    ratio = float(((after[1].double() - before[1].double()) * change).sum() / size)
    if not 0 < ratio < float("inf"):
        return known
    return ratio if known is None else max(ratio, known / 2)


def fingerprint(x: Tensor) -> Tensor:
    """Two sums that tell a batch from another, or from the same one in another order, ``(3,)``."""
    flat = x.detach().reshape(-1).double()
    ramp = torch.linspace(1.0, 2.0, flat.numel(), dtype=torch.float64, device=x.device)
    return torch.stack((flat.sum(), flat @ ramp, flat.new_tensor(float(x.shape[0])))).cpu()
