"""What m2 sees of the units of a site where it may rescale them only: T is diagonal.

Along the axes of the hidden units, the energies that m2 knows of directions or of diagonal entries
are sums of squares over the weights, gradients and features of one unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metaopt.learned.forward_record import ForwardRecord
from metaopt.learned.observation import TINY, log_sign
from metaopt.randomness import same_randomness
from metaopt.symmetry import Site
from metaopt.symmetry.functional import call_with

EMPTY = 1e-12  # of C_ii, or of an eigenvalue, over the mean; up to it there is only rounding


class Units(NamedTuple):
    """Energies of each unit of a site, ``(k,)``."""

    weights: tuple[Tensor, Tensor]  # of what takes the scale, and of what is divided by it
    gradients: tuple[Tensor, Tensor]  # likewise
    features: Tensor  # C_ii = sum of h_i^2 over the samples and positions
    gradient_rms: Tensor  # scalar, over the weight that is divided

    @classmethod
    def of(
        cls,
        site: Site,
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        hidden: Tensor,
    ) -> Units:
        """Return the energies at a site that can be rescaled.

        Args:
            parameters, gradients: by name, at least those of the site.
            hidden: the input of the outgoing layer.
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
        """Units without features, ``(k,)`` bool: nothing is known of how to scale a dead one."""
        return self.features <= EMPTY * self.features.mean()

    def gate(self, gain: float) -> Tensor:
        """As :func:`metaopt.learned.element.gate`, a scalar."""
        return torch.tanh(gain * self.gradient_rms / (self.features.sum() + TINY))

    def channel_pairs(self, feature: str) -> list[Tensor]:
        """The channels of "gradients" or "balance"."""
        energies = self.gradients if feature == "gradients" else self.weights
        return [channel for energy in energies for channel in log_sign(energy)]


def _energies(site: Site, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Square norms of what makes each unit, and of what uses it, ``(k,)`` each."""
    into = [view.read_augmented(tensors).float().square().sum(dim=-1) for view in site.incoming]
    out_of = [view.read(tensors).float().square().sum(dim=-2) for view in site.outgoing]
    return torch.stack(into).sum(dim=0), torch.stack(out_of).sum(dim=0)


def _features(site: Site, hidden: Tensor, convolution: bool) -> Tensor:
    """Of ``(*samples, k * block)`` into a Linear, or ``(samples, k, ...)`` into a convolution."""
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
    """Return what the outgoing layers of the sites are given in this pass, which is done again.

    Dropout draws other masks than it did then.

    Returns:
        By name of the outgoing layer.
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
