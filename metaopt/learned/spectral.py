"""m2 (the group-element network) over the eigen-directions of the hidden features of a site.

With C = h h^T = V diag(lambda) V^T, T = V diag(t) V^T, and one LSTM that all directions share
proposes t_i. It has k columns to step, where an m2 over entries has k^2. Where the eigenvalues
differ, what it proposes does not depend on the basis of the hidden units: for an orthogonal Q,
h -> Q h gives T -> Q T Q^T. With fewer samples than hidden units, the directions without features
have an arbitrary basis. m2 sees the same of each of them, the mean over all.

t_i = -1/2 tanh(o_i) log(lambda_i / c) + stretch tanh(p_i), with c the mean of lambda. o_i says how
far the direction is whitened: wholly at tanh(o_i) = 1. p_i stretches it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from metaopt.checks import check_names, check_not_negative
from metaopt.learned.element import (
    ELEMENT_RULES,
    BoundedFields,
    ElementConfig,
    ElementRule,
    site_gate,
)
from metaopt.learned.observation import TINY, Observation, log_sign, unflatten
from metaopt.learned.state import Columns
from metaopt.learned.units import EMPTY, Units
from metaopt.learned.update import RuleState
from metaopt.symmetry import Action
from metaopt.symmetry.chain import Layer, LayerChain, LayerPair
from metaopt.symmetry.element import MAX_DIRECTION, Element

SMALLEST = 1e-7  # of lambda / c; a smaller one is whitened as if it were this large


class Spectrum(NamedTuple):
    """The eigenvalues and eigenvectors of C = h h^T, over its mean eigenvalue c.

    Attributes:
        log_values: log(lambda / c), ``(*batch, k)``.
        vectors: the eigenvectors as columns, ``(*batch, k, k)``.
        log_scale: log c, ``(*batch, 1)``.
        basis: the eigenvectors in float64, so that exp(T) exp(-T) is I to that precision.
        empty: the directions without features, ``(*batch, k)`` bool.
    """

    log_values: Tensor
    vectors: Tensor
    log_scale: Tensor
    basis: Tensor
    empty: Tensor

    @classmethod
    def of(cls, h: Tensor, dtype: torch.dtype = torch.float32) -> Spectrum:
        """Return the spectrum of features.

        Args:
            h: ``(*batch, k, samples)`` in float64: rounding to float32 would turn the directions
                of small eigenvalues at random. A task whose C is not finite, or 0, has the spectrum
                of I.
            dtype: of all that is returned but the basis.
        """
        c = h @ h.mT
        scale = c.diagonal(dim1=-2, dim2=-1).mean(-1)
        sound = c.isfinite().all(dim=-1).all(dim=-1) & (scale > 0)
        identity = torch.eye(c.shape[-1], dtype=c.dtype, device=c.device)
        unit = torch.where(sound[..., None, None], c / (scale[..., None, None] + TINY), identity)
        values, vectors = torch.linalg.eigh(unit)
        logs = values.clamp(min=SMALLEST).log()
        empty = values <= EMPTY
        log_scale = torch.where(sound, scale, 1.0).log().unsqueeze(-1)
        return cls(logs.to(dtype), vectors.to(dtype), log_scale.to(dtype), vectors, empty)


Feature = Callable[[Observation, LayerPair, Spectrum], list[Tensor]]
"""What m2 sees of the directions of a site: channels ``(*batch, k)``."""


def covariance(seen: Observation, site: LayerPair, spectrum: Spectrum) -> list[Tensor]:
    """Return channels of the eigenvalues: log(lambda / c) and log c, both over 10."""
    logs = spectrum.log_values
    return [logs / 10.0, (spectrum.log_scale / 10.0).expand_as(logs)]


def gradients(seen: Observation, site: LayerPair, spectrum: Spectrum) -> list[Tensor]:
    """Return channels of the square norms of the gradients on both sides along each direction."""
    return _energies(seen.layer_gradients, site, spectrum)


def balance(seen: Observation, site: LayerPair, spectrum: Spectrum) -> list[Tensor]:
    """Return channels of the square norms of the weights on both sides along each direction."""
    return _energies(seen.layers, site, spectrum)


def _energies(layers: Sequence[Layer], site: LayerPair, spectrum: Spectrum) -> list[Tensor]:
    incoming, outgoing = layers[site.incoming].augmented(), layers[site.outgoing].weight
    along_in = (spectrum.vectors.mT @ incoming).square().sum(dim=-1)
    along_out = (outgoing @ spectrum.vectors).square().sum(dim=-2)
    return [
        channel
        for along in (along_in, along_out)
        for channel in log_sign(_level(along, spectrum.empty))
    ]


def _level(values: Tensor, empty: Tensor) -> Tensor:
    """``values`` with those of the empty directions replaced by the mean over these."""
    count = empty.sum(dim=-1, keepdim=True).clamp(min=1)
    mean = (values * empty).sum(dim=-1, keepdim=True) / count
    return torch.where(empty, mean, values)


DIRECTION_FEATURES: dict[str, tuple[int, Feature]] = {
    "gradients": (4, gradients),
    "balance": (4, balance),
    "covariance": (2, covariance),
}
"""What a spectral m2 can see, by name, with the number of channels of each."""


@final
class SpectralElement(ElementRule):
    """m2 over directions: one LSTM that the eigen-directions of all sites share.

    The head starts at zero, so that LSTM(update,tele) starts as LSTM(update).

    Args:
        config: its fields; with a stretch of 1 meta-training explodes.
        preactivations: whether z = W_{m-1} h + b is decomposed, on which eq. 79 acts, instead of
            the features sigma(z).
        generator: of the initial weights.
    """

    def __init__(
        self, config: SpectralElementConfig, preactivations: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.config = config
        self.features = [DIRECTION_FEATURES[name][1] for name in config.features]
        self.preactivations = preactivations
        channels = sum(DIRECTION_FEATURES[name][0] for name in config.features)
        self.lstm = config.lstm(channels, 2, generator)
        self.lstm.zero_head()

    def init_state(self, chain: LayerChain, parameters: Sequence[Tensor]) -> RuleState:
        """See :meth:`ElementRule.init_state`."""
        return self.lstm.init_state(sum(self._directions_of(chain, parameters)))

    def columns(self, chain: LayerChain, parameters: Sequence[Tensor]) -> list[Columns]:
        """See :meth:`ElementRule.columns`."""
        return self.lstm.columns(self._directions_of(chain, parameters))

    def _directions_of(self, chain: LayerChain, parameters: Sequence[Tensor]) -> list[int]:
        """How many directions there are at each site, in all tasks."""
        layers = chain.layers(parameters)
        return [layers[site.incoming].weight.shape[:-1].numel() for site in chain.pairs]

    def propose(self, seen: Observation, state: RuleState) -> tuple[list[Element], RuleState]:
        """See :meth:`ElementRule.propose`."""
        sites = seen.chain.pairs
        spectra = [Spectrum.of(self._decomposed(seen, site), seen.x.dtype) for site in sites]
        channels = [
            torch.stack([c for see in self.features for c in see(seen, site, spectrum)])
            for site, spectrum in zip(sites, spectra, strict=True)
        ]
        values, following = self._values(channels, [s.log_values for s in spectra], state)
        gates = [site_gate(seen, site, self.config.gate)[..., None] for site in sites]
        return [
            Element(t * own, spectrum.basis)
            for t, own, spectrum in zip(values, gates, spectra, strict=True)
        ], following

    def init_units(self, widths: Sequence[int]) -> RuleState:
        """See :meth:`ElementRule.init_units`."""
        return self.lstm.init_state(sum(widths))

    def propose_units(
        self, units: Sequence[Units], state: RuleState
    ) -> tuple[list[Element], RuleState]:
        """See :meth:`ElementRule.propose_units`."""
        logs = [
            (of.features / (of.features.mean() + TINY)).clamp(min=SMALLEST).log() for of in units
        ]
        channels = [self._unit_channels(of, log) for of, log in zip(units, logs, strict=True)]
        values, following = self._values(channels, logs, state)
        gain = self.config.gate
        return [of.element(t, gain) for of, t in zip(units, values, strict=True)], following

    def _values(
        self, channels: Sequence[Tensor], logs: Sequence[Tensor], state: RuleState
    ) -> tuple[list[Tensor], RuleState]:
        """t of each site before the gate, from the channels and log(lambda / c) of each."""
        x = torch.cat([tensor.flatten(start_dim=1) for tensor in channels], dim=1)
        output, following = self.lstm(x, state)
        whiten, stretch = (unflatten(row, logs) for row in torch.tanh(output))
        bound, most = self.config.bound, self.config.stretch
        return [
            bound * torch.tanh((most * p - 0.5 * o * log) / bound)
            for o, p, log in zip(whiten, stretch, logs, strict=True)
        ], following

    def _unit_channels(self, units: Units, log: Tensor) -> Tensor:
        channels: list[Tensor] = []
        for name in self.config.features:
            if name == "covariance":
                scale = (units.features.mean() + TINY).log()
                channels += [log / 10.0, (scale / 10.0).expand_as(log)]
            else:
                channels += units.channel_pairs(name)
        return torch.stack(channels)

    def _decomposed(self, seen: Observation, site: LayerPair) -> Tensor:
        if not self.preactivations:
            return seen.double_inputs[site.outgoing]
        return seen.double_layers[site.incoming](seen.double_inputs[site.incoming])


@ELEMENT_RULES.register("spectral")
@dataclass(frozen=True)
class SpectralElementConfig(BoundedFields, ElementConfig):
    """The config of an m2 over the eigen-directions of the hidden features.

    Attributes:
        stretch: largest part of an eigenvalue of T that does not whiten; 0 lets m2 only whiten.
    """

    largest: ClassVar[float] = MAX_DIRECTION

    stretch: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative("stretch", self.stretch)
        check_names("features of a spectral m2", self.features, DIRECTION_FEATURES)

    def build(self, action: Action, generator: torch.Generator) -> SpectralElement:
        """See :meth:`ElementConfig.build`."""
        return SpectralElement(self, action.on_preactivations, generator)
