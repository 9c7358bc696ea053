"""What m2 sees of the units of a site where it may rescale them only: T is diagonal.

Along the axes of the hidden units, the energies that m2 knows of directions or of diagonal entries
are sums of squares over the weights, gradients and features of one unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaopt.learned.observation import TINY, log_sign
from metaopt.learned.tape import Pass
from metaopt.randomness import same_randomness
from metaopt.symmetry.finders import ModuleSite
from metaopt.symmetry.move import with_values
from metaopt.symmetry.rescaling import by_input, by_unit

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
        site: ModuleSite,
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        hidden: Tensor,
    ) -> Units:
        """Of parameters and gradients by name, and the input of the outgoing layer."""
        return cls(
            _energies(site, parameters),
            _energies(site, gradients),
            _features(site, hidden, parameters[site.divided].dim() > 2),
            gradients[site.divided].float().square().mean().sqrt(),
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


def _energies(site: ModuleSite, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    multiplied = [by_unit(site, tensors[name].float()) for name in site.multiplied]
    out = by_input(site, tensors[site.divided].float())
    return (
        torch.cat(multiplied, dim=1).square().sum(dim=1),
        out.square().sum(dim=(1, 3)).reshape(-1),
    )


def _features(site: ModuleSite, hidden: Tensor, convolution: bool) -> Tensor:
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
    seen: Pass,
    sites: Sequence[ModuleSite],
) -> dict[str, Tensor]:
    """What the outgoing layers of the sites are given in this pass, done again.

    With other dropout masks, where there are any.
    """
    kept: dict[str, Tensor] = {}

    def keeper(name: str) -> Any:
        return lambda module, arguments: kept.__setitem__(name, arguments[0])

    handles = [
        model.get_submodule(site.outgoing).register_forward_pre_hook(keeper(site.outgoing))
        for site in sites
    ]
    try:
        with same_randomness(), seen.autocast():
            functional_call(model, with_values(model, names, values), seen.arguments, seen.keywords)
    finally:
        for handle in handles:
            handle.remove()
    return kept
