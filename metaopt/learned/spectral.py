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
    outgoing_rms,
    site_gate,
)
from metaopt.learned.observation import TINY, Observation, log_sign, unflatten
from metaopt.learned.state import Columns
from metaopt.learned.units import EMPTY, Units, gate
from metaopt.learned.update import RuleState
from metaopt.symmetry import Action
from metaopt.symmetry.chain import Layer, LayerChain, LayerPair
from metaopt.symmetry.element import MAX_DIRECTION, Element
from metaopt.symmetry.inputs import Eigen, eigen

SMALLEST = 1e-7  # of lambda / c; a smaller one is whitened as if it were this large


class Spectrum(NamedTuple):
    """The eigenvalues and eigenvectors of C = h h^T, over its mean eigenvalue c.

    Attributes:
        log_values: log(lambda / c), ``(*batch, k)``.
        vectors: the eigenvectors as columns, ``(*batch, k, k)``.
        log_scale: log c, ``(*batch, 1)``.
        basis: the eigenvectors in float64, so that exp(T) exp(-T) is I to that precision.
        empty: the directions without features, ``(*batch, k)`` bool.
        trace: of C in float64, ``(*batch,)``.
    """

    log_values: Tensor
    vectors: Tensor
    log_scale: Tensor
    basis: Tensor
    empty: Tensor
    trace: Tensor

    @classmethod
    def of(cls, h: Tensor, dtype: torch.dtype = torch.float32) -> Spectrum:
        """Return the spectrum of features.

        Args:
            h: ``(*batch, k, samples)`` in float64: rounding to float32 would turn the directions
                of small eigenvalues at random. A task whose C is not finite, or 0, has the spectrum
                of I.
            dtype: of all that is returned but the basis.
        """
        return cls.of_moment(eigen(h @ h.mT), dtype)

    @classmethod
    def of_moment(cls, moment: Eigen, dtype: torch.dtype = torch.float32) -> Spectrum:
        """Return the spectrum of features whose C is known, decomposed.

        Args:
            moment: of C; that of I where C is not finite.
            dtype: as for :meth:`of`.
        """
        values, vectors = moment
        trace = values.sum(dim=-1, keepdim=True)
        # Where C is 0 all directions are alike, as those of I are.
        scale = torch.where(trace > 0, trace / values.shape[-1], 1.0)
        relative = torch.where(trace > 0, values / scale, 1.0)
        logs = relative.clamp(min=SMALLEST).log()
        empty = relative <= EMPTY
        return cls(
            logs.to(dtype),
            vectors.to(dtype),
            scale.log().to(dtype),
            vectors,
            empty,
            trace[..., 0],
        )


def gradients(seen: Observation) -> list[Layer]:
    """Return what is seen by its square norms along each direction, on both sides: gradients."""
    return seen.layer_gradients


def balance(seen: Observation) -> list[Layer]:
    """Return what is seen by its square norms along each direction, on both sides: weights."""
    return seen.layers


def _energies(layers: Sequence[Sequence[Layer]], site: LayerPair, spectrum: Spectrum) -> Tensor:
    """The square norms along each direction, ``(kinds of layers, sides, *batch, k)``."""
    incoming = torch.stack([own[site.incoming].augmented() for own in layers])
    outgoing = torch.stack([own[site.outgoing].weight for own in layers])
    along_in = (spectrum.vectors.mT @ incoming).square().sum(dim=-1)
    along_out = (outgoing @ spectrum.vectors).square().sum(dim=-2)
    return _level(torch.stack((along_in, along_out), dim=1), spectrum.empty)


def _channels(
    features: Sequence[str], seen: Observation, site: LayerPair, spectrum: Spectrum
) -> Tensor:
    """What m2 sees of the directions of a site, ``(channels, *batch, k)``."""
    energies = [ENERGIES[name](seen) for name in features if name in ENERGIES]
    shown: list[Tensor] = []
    if energies:
        pairs = zip(*log_sign(_energies(energies, site, spectrum)), strict=True)
        shown = [torch.stack(pair, dim=1).flatten(end_dim=1) for pair in pairs]
    if "covariance" in features:  # log(lambda / c) and log c, both over 10
        logs = spectrum.log_values
        both = torch.stack((logs, spectrum.log_scale.expand_as(logs))) / 10.0
        shown.insert(list(features).index("covariance"), both)
    return torch.cat(shown)


def _level(values: Tensor, empty: Tensor) -> Tensor:
    """``values`` with those of the empty directions replaced by the mean over these."""
    count = empty.sum(dim=-1, keepdim=True).clamp(min=1)
    mean = (values * empty).sum(dim=-1, keepdim=True) / count
    return torch.where(empty, mean, values)


ENERGIES: dict[str, Callable[[Observation], Sequence[Layer]]] = {
    "gradients": gradients,
    "balance": balance,
}
"""What a spectral m2 sees the square norms of, on both sides of a site, by name."""

DIRECTION_FEATURES = {"gradients": 4, "balance": 4, "covariance": 2}
"""The numbers of channels of what a spectral m2 can see, by name."""


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
        self.preactivations = preactivations
        channels = sum(DIRECTION_FEATURES[name] for name in config.features)
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
        spectra = [self._spectrum(seen, site) for site in sites]
        channels = [
            _channels(self.config.features, seen, site, spectrum)
            for site, spectrum in zip(sites, spectra, strict=True)
        ]
        values, following = self._values(channels, [s.log_values for s in spectra], state)
        gates = [
            self._gate(seen, site, spectrum)[..., None]
            for site, spectrum in zip(sites, spectra, strict=True)
        ]
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

    def _spectrum(self, seen: Observation, site: LayerPair) -> Spectrum:
        if self.preactivations:
            layer, h = seen.double_layers[site.incoming], seen.double_inputs[site.incoming]
            return Spectrum.of(layer(h), seen.x.dtype)
        if not seen.chain.biased[site.outgoing]:  # m1 may have decomposed it
            return Spectrum.of_moment(seen.moments[site.outgoing], seen.x.dtype)
        return Spectrum.of(seen.passed.inputs[site.outgoing][..., :-1, :], seen.x.dtype)

    def _gate(self, seen: Observation, site: LayerPair, spectrum: Spectrum) -> Tensor:
        gain = self.config.gate
        if self.preactivations:
            return site_gate(seen, site, gain)
        return gate(gain, outgoing_rms(seen, site), spectrum.trace).to(seen.x.dtype)


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
