"""m2 in the eigenbasis of the hidden features: coordinate-wise over directions, not entries.

With C = h h^T = V diag(lambda) V^T at a site, T = V diag(t) V^T, and one LSTM shared by all
directions i proposes t_i: k columns to step instead of k^2. Where the eigenvalues differ, what it
does depends on no basis of the hidden units (for an orthogonal Q, h -> Q h gives T -> Q T Q^T).
With fewer samples than hidden units the directions without features have a basis of chance: m2
sees the same of each of them, the mean over all.

t_i = -1/2 tanh(o_i) log(lambda_i / c) + stretch tanh(p_i), c the mean of lambda: o_i says how far
the direction is whitened, with tanh(o_i) = 1 all the way; p_i stretches it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from metaopt.checks import check_not_negative
from metaopt.errors import check_names
from metaopt.learned.element import ELEMENT_RULES, BoundedFields, ElementConfig, ElementRule, gate
from metaopt.learned.lstm import LSTM
from metaopt.learned.observation import TINY, Observation, log_sign, unflatten
from metaopt.learned.units import EMPTY, Units
from metaopt.learned.update import State
from metaopt.symmetry import Action
from metaopt.symmetry.chain import LayerChain, LayerPair
from metaopt.symmetry.element import MAX_DIRECTION, Element

SMALLEST = 1e-7  # of lambda / c; a smaller one is whitened as if it were this large


class Spectrum(NamedTuple):
    """C of a site over its mean eigenvalue, decomposed."""

    log_values: Tensor  # (*batch, k), log(lambda / c)
    vectors: Tensor  # (*batch, k, k), columns
    log_scale: Tensor  # (*batch, 1), log c
    basis: Tensor  # the vectors in float64, so that exp(T) exp(-T) is I to that precision
    empty: Tensor  # (*batch, k), bool: no features along this direction

    @classmethod
    def of(cls, h: Tensor, dtype: torch.dtype = torch.float32) -> Spectrum:
        """Of h ``(*batch, k, samples)`` in float64, given in ``dtype``.

        Rounding h to float32 would turn the directions of its small eigenvalues at random. A
        problem that is not finite has the spectrum of I.
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
"""What m2 sees of a direction: channels ``(*batch, k)``."""


def covariance(seen: Observation, site: LayerPair, spectrum: Spectrum) -> list[Tensor]:
    """log lambda / c and log c."""
    logs = spectrum.log_values
    return [logs / 10.0, (spectrum.log_scale / 10.0).expand_as(logs)]


def gradients(seen: Observation, site: LayerPair, spectrum: Spectrum) -> list[Tensor]:
    """The square norm of the gradients on both sides along the direction."""
    incoming = seen.layer_gradients[site.incoming].augmented()
    return _energies(incoming, seen.layer_gradients[site.outgoing].weight, spectrum)


def balance(seen: Observation, site: LayerPair, spectrum: Spectrum) -> list[Tensor]:
    """The square norm of the weights on both sides along the direction."""
    incoming = seen.layers[site.incoming].augmented()
    return _energies(incoming, seen.layers[site.outgoing].weight, spectrum)


def _energies(incoming: Tensor, outgoing: Tensor, spectrum: Spectrum) -> list[Tensor]:
    along_in = (spectrum.vectors.mT @ incoming).square().sum(dim=-1)
    along_out = (outgoing @ spectrum.vectors).square().sum(dim=-2)
    return [
        channel
        for along in (along_in, along_out)
        for channel in log_sign(_level(along, spectrum.empty))
    ]


def _level(values: Tensor, empty: Tensor) -> Tensor:
    """``values`` with those of the empty directions replaced by their mean."""
    count = empty.sum(dim=-1, keepdim=True).clamp(min=1)
    mean = (values * empty).sum(dim=-1, keepdim=True) / count
    return torch.where(empty, mean, values)


DIRECTION_FEATURES: dict[str, tuple[int, Feature]] = {
    "gradients": (4, gradients),
    "balance": (4, balance),
    "covariance": (2, covariance),
}
"""What a spectral m2 can see, by name, each with its number of channels."""


@final
class SpectralElement(ElementRule):
    """One LSTM shared by the directions of every site.

    The head starts at zero, so that LSTM(update,tele) starts as LSTM(update).

    Args:
        stretch: the most that t_i moves besides whitening; at 1, meta-training explodes.
        bound: of |t_i|, smoothly.
        gain: of the gate on T; 0 for none.
        preactivations: decompose z = W_{m-1} h + b, where eq. 79 acts, instead of sigma(z).
    """

    def __init__(
        self,
        hidden: int,
        layers: int,
        features: Sequence[str],
        stretch: float,
        bound: float,
        gain: float,
        preactivations: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.names = tuple(features)
        self.features = [DIRECTION_FEATURES[name][1] for name in features]
        self.stretch = stretch
        self.bound = bound
        self.gain = gain
        self.preactivations = preactivations
        channels = sum(DIRECTION_FEATURES[name][0] for name in features)
        self.lstm = LSTM(channels, hidden, layers, 2, generator)
        self.lstm.zero_head()

    def init_state(self, chain: LayerChain, parameters: Sequence[Tensor]) -> State:
        layers = chain.layers(parameters)
        units = [layers[site.incoming].weight.shape[:-1].numel() for site in chain.pairs]
        return self.lstm.init_state(sum(units))

    def propose(self, seen: Observation, state: State) -> tuple[list[Element], State]:
        sites = seen.chain.pairs
        spectra = [Spectrum.of(self._decomposed(seen, site), seen.x.dtype) for site in sites]
        channels = [
            torch.stack([c for see in self.features for c in see(seen, site, spectrum)]).flatten(1)
            for site, spectrum in zip(sites, spectra, strict=True)
        ]
        output, following = self.lstm(torch.cat(channels, dim=1), state)
        like = [spectrum.log_values for spectrum in spectra]
        whiten, stretch = (unflatten(row, like) for row in torch.tanh(output))
        return [
            Element(
                self._bounded(seen, site, self.stretch * p - 0.5 * o * spectrum.log_values),
                spectrum.basis,
            )
            for site, spectrum, o, p in zip(sites, spectra, whiten, stretch, strict=True)
        ], following

    def init_units(self, widths: Sequence[int]) -> State:
        return self.lstm.init_state(sum(widths))

    def propose_units(self, units: Sequence[Units], state: State) -> tuple[list[Element], State]:
        logs = [
            (of.features / (of.features.mean() + TINY)).clamp(min=SMALLEST).log() for of in units
        ]
        x = torch.cat(
            [self._unit_channels(of, log) for of, log in zip(units, logs, strict=True)], dim=1
        )
        output, following = self.lstm(x, state)
        whiten, stretch = (unflatten(row, logs) for row in torch.tanh(output))
        elements = []
        for of, log, o, p in zip(units, logs, whiten, stretch, strict=True):
            t = self.bound * torch.tanh((self.stretch * p - 0.5 * o * log) / self.bound)
            t = torch.where(of.empty, 0.0, t)
            gated = t * of.gate(self.gain) if self.gain else t
            elements.append(Element(gated, diagonal=True))
        return elements, following

    def _unit_channels(self, units: Units, log: Tensor) -> Tensor:
        channels: list[Tensor] = []
        for name in self.names:
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

    def _bounded(self, seen: Observation, site: LayerPair, t: Tensor) -> Tensor:
        bounded = self.bound * torch.tanh(t / self.bound)
        if self.gain == 0:
            return bounded
        return bounded * gate(seen, site, self.gain)[..., None]


@ELEMENT_RULES.register("spectral")
@dataclass(frozen=True)
class SpectralElementConfig(BoundedFields, ElementConfig):
    """m2 over the eigen-directions of the hidden features.

    Attributes:
        stretch: of a spectral T, the most that a direction moves besides being whitened.
    """

    largest: ClassVar[float] = MAX_DIRECTION

    stretch: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative("stretch", self.stretch)
        check_names("features of a spectral m2", self.features, DIRECTION_FEATURES)

    def build(self, action: Action, generator: torch.Generator) -> SpectralElement:
        return SpectralElement(
            self.hidden,
            self.layers,
            self.features,
            self.stretch,
            self.bound,
            self.gate,
            action.on_preactivations,
            generator,
        )
