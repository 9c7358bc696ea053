"""What m2 (the group-element network) sees of the units of a site that it may only rescale.

T is diagonal there. In place of the directions or the matrix entries that m2 was trained on, it is
shown the units: sums of squares over the weights, the gradients and the features of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metaopt.learned.forward_record import ForwardRecord
from metaopt.learned.observation import TINY, log_sign
from metaopt.randomness import same_randomness
from metaopt.symmetry import Element, Site
from metaopt.symmetry.functional import call_with

EMPTY = 1e-12  # of C_ii, or of an eigenvalue, over the mean; up to it there is only rounding


class Units(NamedTuple):
    """Sums of squares over each of the k units of a site.

    Attributes:
        weights: over the weights and bias that make the unit, and over those that use it, ``(k,)``
            each.
        gradients: the same of their gradients.
        features: C_ii, the sum of h_i^2 over samples and positions, ``(k,)``.
        gradient_rms: the root mean square of the gradient of the outgoing weight, a scalar.
    """

    weights: tuple[Tensor, Tensor]
    gradients: tuple[Tensor, Tensor]
    features: Tensor
    gradient_rms: Tensor

    @classmethod
    def of(
        cls,
        site: Site,
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        hidden: Tensor,
    ) -> Units:
        """Return the sums of squares at a site that can be rescaled.

        Args:
            site: the site, of k units.
            parameters: by name, at least those of the site.
            gradients: of the same parameters, by name.
            hidden: what the outgoing layer is given: ``(*samples, k * block)`` for a Linear layer,
                ``(samples, k, ...)`` for a convolution.
        """
        divided = site.outgoing[0].parameter
        return cls(
            _energies(site, parameters),
            _energies(site, gradients),
            _features(site, hidden, parameters[divided].dim() > 2),
            gradients[divided].float().square().mean().sqrt(),
        )

    @property
    def empty(self) -> Tensor:
        """The units without features, ``(k,)`` bool; nothing says how to scale a dead unit."""
        return self.features <= EMPTY * self.features.mean()

    def element(self, t: Tensor, gain: float) -> Element:
        """Return the diagonal T of a site, which is 0 for dead units.

        Args:
            t: the entries before the gate, ``(k,)``.
            gain: of the gate.
        """
        open_by = gate(gain, self.gradient_rms, self.features.sum())
        return Element(torch.where(self.empty, 0.0, t) * open_by, diagonal=True)

    def channel_pairs(self, feature: str) -> list[Tensor]:
        """Return the channels of a feature that is shown for both sides of a site.

        Args:
            feature: "gradients" or "balance".

        Returns:
            Four channels, ``(k,)`` each.
        """
        energies = self.gradients if feature == "gradients" else self.weights
        return [channel for energy in energies for channel in log_sign(energy)]


def gate(gain: float, gradient_rms: Tensor, trace: Tensor) -> Tensor:
    """Return a factor of T that closes where the gradient has vanished, ``(*batch,)``.

    It is tanh(gain * RMS(dL/dW_m) / tr C), with W_m the outgoing weight and C = h h^T.

    Args:
        gain: the larger, the longer the gate stays open; 0 for no gate, a factor of 1.
        gradient_rms: RMS(dL/dW_m), ``(*batch,)``.
        trace: tr C, ``(*batch,)``.
    """
    if gain == 0:
        return torch.ones_like(trace)
    return torch.tanh(gain * gradient_rms / (trace + TINY))


def _energies(site: Site, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Sums of squares over what makes each unit, and over what uses it, ``(k,)`` each."""
    into = [view.read_augmented(tensors).float().square().sum(dim=-1) for view in site.incoming]
    out_of = [view.read(tensors).float().square().sum(dim=-2) for view in site.outgoing]
    return torch.stack(into).sum(dim=0), torch.stack(out_of).sum(dim=0)


def _features(site: Site, hidden: Tensor, convolution: bool) -> Tensor:
    """The sums of squares of the features of each unit, ``(k,)``."""
    h = hidden.detach().float()
    by_unit = (
        h.movedim(1, 0) if convolution else h.reshape(-1, site.width, site.block).movedim(1, 0)
    )
    return by_unit.reshape(site.width, -1).square().sum(dim=1)


@torch.no_grad()
def inner_inputs(
    model: nn.Module,
    names: Sequence[str],
    values: Sequence[Tensor],
    seen: ForwardRecord,
    sites: Sequence[Site],
) -> dict[str, Tensor]:
    """Return what the outgoing layers of sites are given in a forward pass, which is run again.

    Dropout draws other masks than it did in the pass itself. The state of the random generators and
    the model's buffers stay as they are.

    Args:
        model: the network.
        names: of the parameters whose values are given.
        values: the parameters, in the order of ``names``.
        seen: the record of the pass.
        sites: the sites.

    Returns:
        The inputs, by name of the outgoing layer.
    """
    kept: dict[str, Tensor] = {}

    def keeper(name: str) -> Any:
        return lambda module, arguments: kept.__setitem__(name, arguments[0])

    handles = [
        model.get_submodule(site.layers[1]).register_forward_pre_hook(keeper(site.layers[1]))
        for site in sites
    ]
    try:
        with same_randomness(), seen.autocast():
            call_with(model, names, values, seen.arguments, seen.keywords)
    finally:
        for handle in handles:
            handle.remove()
    return kept
