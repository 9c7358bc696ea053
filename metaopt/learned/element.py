"""m2 (the group-element network): the rules for T_t at each site, g_t = exp(T_t) (eqs. 18, 19)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor, nn

from metaopt.checks import check_names, check_not_negative
from metaopt.errors import UserError
from metaopt.learned.fields import FlatFields, LSTMFields, RuleConfig
from metaopt.learned.lstm import LSTM
from metaopt.learned.observation import TINY, Observation, log_sign, unflatten
from metaopt.learned.state import Columns
from metaopt.learned.units import Units, gate
from metaopt.learned.update import LSTMPerTask, RuleState, flat_gradient
from metaopt.registry import Registry
from metaopt.symmetry import Action
from metaopt.symmetry.chain import Layer, LayerChain, LayerPair
from metaopt.symmetry.element import MAX_ELEMENT, Element


class ElementRule(nn.Module, ABC):
    """Proposes a Lie-algebra element T_t for each site; the state goes in and comes out."""

    @abstractmethod
    def init_state(self, chain: LayerChain, parameters: Sequence[Tensor]) -> RuleState:
        """Return the state before the first step.

        Args:
            chain: the layers; a site is between each two of them.
            parameters: of the chain, in order.
        """

    def columns(self, chain: LayerChain, parameters: Sequence[Tensor]) -> list[Columns] | None:
        """Return how each tensor of the state is divided between the sites of the chain.

        Args:
            chain: as for :meth:`init_state`.
            parameters: as for :meth:`init_state`.

        Returns:
            One entry for each tensor of the state; None, the default, if they are of all sites
            together.
        """
        return None

    @abstractmethod
    def propose(self, seen: Observation, state: RuleState) -> tuple[Sequence[Element], RuleState]:
        """Return T_t of each site of the chain, and the next state.

        Args:
            seen: what is seen at w_t, without a graph.
            state: the state before the step; it is not changed.
        """

    def init_units(self, widths: Sequence[int]) -> RuleState:
        """Return the state before the first call of :meth:`propose_units`: a column for each unit.

        Args:
            widths: the number of units of each site.

        Raises:
            UserError: if the rule cannot propose diagonal elements.
        """
        raise UserError(
            f"expected an m2 that can rescale units, got {type(self).__name__}: use a "
            f"coordinate-wise or a spectral one, or action='none'"
        )

    def propose_units(
        self, units: Sequence[Units], state: RuleState
    ) -> tuple[list[Element], RuleState]:
        """Return a diagonal T_t for each site, ``(k,)``, and the next state.

        It is asked for where rescaling alone is exact. The network is the one of whole elements; it
        is shown units in place of directions or of matrix entries.

        Args:
            units: what is seen of the units of each site.
            state: the state before the step; it is not changed.
        """
        raise NotImplementedError


class ElementConfig(RuleConfig, ABC):
    """The config of an element rule (m2); a subclass is a frozen dataclass of checked fields."""

    @abstractmethod
    def build(self, action: Action, generator: torch.Generator) -> ElementRule | None:
        """Return the rule, or None where g = I.

        Args:
            action: the action that the elements are for.
            generator: of the initial weights.
        """


ELEMENT_RULES: Registry[type[ElementConfig]] = Registry("element")
"""Configs of the element rules (m2) by name."""


@ELEMENT_RULES.register("none")
@dataclass(frozen=True)
class NoElementConfig(ElementConfig):
    """The config without an m2: g = I, and nothing is teleported."""

    @property
    def needs_chain(self) -> bool:
        """See :attr:`RuleConfig.needs_chain`; no."""
        return False

    def build(self, action: Action, generator: torch.Generator) -> None:
        """See :meth:`ElementConfig.build`; no rule."""
        return None


@dataclass(frozen=True)
class BoundedFields(LSTMFields):
    """The fields of a learned m2: what it sees, and how large T may become.

    Attributes:
        features: the inputs of m2: "gradients", "balance" (norms of the weights on both sides) and
            "covariance" (of the hidden features). A coordinatewise m2 can have "preactivations"
            too; a spectral m2 has them in place of the features where eq. 79 acts.
        bound: largest size of T. A coordinatewise m2 bounds each entry by bound / k, with k hidden
            units, and a spectral m2 bounds each eigenvalue.
        gate: gain of the gate that closes T as the gradients vanish; 0 for no gate.
        largest: the largest bound that the form of T allows.
    """

    largest: ClassVar[float] = MAX_ELEMENT

    features: tuple[str, ...] = ("gradients", "balance", "covariance")
    bound: float = 3.0
    gate: float = 1000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_element("bound", self.bound, self.largest)
        check_not_negative("gate", self.gate)


def check_element(name: str, value: float, largest: float = MAX_ELEMENT) -> None:
    """Check that a field is a size of T that actions take.

    Args:
        name: of the field.
        value: of the field.
        largest: the largest size.

    Raises:
        UserError: if it is 0 or less, or larger than that.
    """
    if not 0 < value <= largest:
        raise UserError(
            f"expected {name} in (0, {largest:g}], got {value}: every action refuses larger "
            "elements"
        )


class Seen(NamedTuple):
    """A feature of the entries (i, j) of a site; tensors are ``(*batch, k, k)``.

    Attributes:
        by_log: what m2 sees through :func:`log_sign`, as two channels each.
        plain: what it sees as it is.
    """

    by_log: list[Tensor]
    plain: list[Tensor]


Feature = Callable[[Observation, LayerPair], Seen]
"""What m2 sees of the entries of a site."""


def gradients(seen: Observation, site: LayerPair) -> Seen:
    """Return the products of gradients on both sides of a site, D_in D_in^T and D_out^T D_out.

    Their difference is half the derivative of ||grad L||^2 along the orbit of a linear network.
    """
    return Seen(_products(seen.layer_gradients, site), [])


def balance(seen: Observation, site: LayerPair) -> Seen:
    """Return the products of weights on both sides of a site, W_in W_in^T and W_out^T W_out.

    Gradient flow conserves their difference where GL acts.
    """
    return Seen(_products(seen.layers, site), [])


def covariance(seen: Observation, site: LayerPair) -> Seen:
    """Return C = h h^T of the hidden features, C over its mean diagonal, and the identity."""
    return _covariance(seen.inputs[site.outgoing])


def preactivations(seen: Observation, site: LayerPair) -> Seen:
    """Return what :func:`covariance` gives, of z = W_{m-1} h + b, on which eq. 79 acts."""
    return _covariance(seen.layers[site.incoming](seen.inputs[site.incoming]))


def _products(layers: Sequence[Layer], site: LayerPair) -> list[Tensor]:
    incoming, outgoing = layers[site.incoming].augmented(), layers[site.outgoing].weight
    return [incoming @ incoming.mT, outgoing.mT @ outgoing]


def _covariance(h: Tensor) -> Seen:
    c = h @ h.mT
    mean_diagonal = c.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    identity = torch.eye(c.shape[-1], dtype=c.dtype, device=c.device)
    return Seen([c], [(c / (mean_diagonal + TINY)).clamp(-3.0, 3.0), identity.expand_as(c)])


FEATURES: dict[str, tuple[int, Feature]] = {
    "gradients": (4, gradients),
    "balance": (4, balance),
    "covariance": (4, covariance),
    "preactivations": (4, preactivations),
}
"""What an m2 over entries can see, by name, with the number of channels of each."""


def channels(features: Sequence[Feature], seen: Observation, site: LayerPair) -> Tensor:
    """Return all that m2 sees of a site, ``(channels, *batch, k, k)``.

    Args:
        features: what it sees.
        seen: what is seen of the chain.
        site: the two layers.
    """
    parts = [feature(seen, site) for feature in features]
    logs = torch.stack([matrix for part in parts for matrix in part.by_log])
    plain = [matrix for part in parts for matrix in part.plain]
    pairs = torch.stack(log_sign(logs), dim=1).flatten(0, 1)
    return torch.cat((pairs, torch.stack(plain))) if plain else pairs


def site_gate(seen: Observation, site: LayerPair, gain: float) -> Tensor:
    """Return the factor of T (:func:`metaopt.learned.units.gate`) of a site, ``(*batch,)``.

    Args:
        seen: what is seen of the chain.
        site: the two layers.
        gain: of the gate.
    """
    trace = seen.inputs[site.outgoing].square().sum(dim=(-2, -1))
    return gate(gain, outgoing_rms(seen, site), trace)


def outgoing_rms(seen: Observation, site: LayerPair) -> Tensor:
    """Return the root mean square of the gradient of the outgoing weight, ``(*batch,)``.

    Args:
        seen: what is seen of the chain.
        site: the two layers.
    """
    outgoing = seen.layer_gradients[site.outgoing].weight
    return outgoing.square().mean(dim=(-2, -1)).sqrt()


@final
class CoordinatewiseElement(ElementRule):
    """m2 over entries: one LSTM that the k x k entries of all sites share.

    T = bound * tanh(output) / k * gate. The head starts at zero, so that LSTM(update,tele) starts
    as LSTM(update).

    Args:
        config: its fields.
        generator: of the initial weights.
    """

    def __init__(self, config: CoordinatewiseElementConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.features = [FEATURES[name][1] for name in config.features]
        inputs = sum(FEATURES[name][0] for name in config.features)
        self.lstm = config.lstm(inputs, 1, generator)
        self.lstm.zero_head()

    def init_state(self, chain: LayerChain, parameters: Sequence[Tensor]) -> RuleState:
        """See :meth:`ElementRule.init_state`."""
        return self.lstm.init_state(sum(self._entries_of(chain, parameters)))

    def columns(self, chain: LayerChain, parameters: Sequence[Tensor]) -> list[Columns]:
        """See :meth:`ElementRule.columns`."""
        return self.lstm.columns(self._entries_of(chain, parameters))

    def _entries_of(self, chain: LayerChain, parameters: Sequence[Tensor]) -> list[int]:
        """How many entries T has at each site, in all tasks."""
        shapes = [layer.weight.shape for layer in chain.layers(parameters)]
        into = [shapes[site.incoming] for site in chain.pairs]
        return [shape[:-1].numel() * shape[-2] for shape in into]

    def propose(self, seen: Observation, state: RuleState) -> tuple[list[Element], RuleState]:
        """See :meth:`ElementRule.propose`."""
        sites = seen.chain.pairs
        entries, following = self._entries(
            [channels(self.features, seen, site) for site in sites], state
        )
        gates = [site_gate(seen, site, self.config.gate)[..., None, None] for site in sites]
        return [Element(t * own) for t, own in zip(entries, gates, strict=True)], following

    def init_units(self, widths: Sequence[int]) -> RuleState:
        """See :meth:`ElementRule.init_units`."""
        return self.lstm.init_state(sum(widths))

    def propose_units(
        self, units: Sequence[Units], state: RuleState
    ) -> tuple[list[Element], RuleState]:
        """See :meth:`ElementRule.propose_units`."""
        entries, following = self._entries([self._diagonal(of) for of in units], state)
        gain = self.config.gate
        return [of.element(t, gain) for of, t in zip(units, entries, strict=True)], following

    def _entries(self, shown: Sequence[Tensor], state: RuleState) -> tuple[list[Tensor], RuleState]:
        """T of each site before the gate, from the channels ``(channels, *entries)`` of each."""
        x = torch.cat([tensor.flatten(start_dim=1) for tensor in shown], dim=1)
        output, following = self.lstm(x, state)
        raw = unflatten(output[0], [tensor[0] for tensor in shown])
        return [torch.tanh(o) * (self.config.bound / o.shape[-1]) for o in raw], following

    def _diagonal(self, units: Units) -> Tensor:
        """The channels of the entries (i, i), ``(channels, k)``; "preactivations" are features."""
        logs, plain = [], []
        for name in self.config.features:
            if name in ("gradients", "balance"):
                logs += units.channel_pairs(name)
            else:
                c = units.features
                logs += log_sign(c)
                plain += [(c / (c.mean() + TINY)).clamp(-3.0, 3.0), torch.ones_like(c)]
        return torch.stack(logs + plain)


@ELEMENT_RULES.register("coordinatewise")
@dataclass(frozen=True)
class CoordinatewiseElementConfig(BoundedFields, ElementConfig):
    """The config of an m2 over the k x k entries of T."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names("features", self.features, FEATURES)

    def build(self, action: Action, generator: torch.Generator) -> CoordinatewiseElement:
        """See :meth:`ElementConfig.build`."""
        return CoordinatewiseElement(self, generator)


@final
class FlatElement(LSTMPerTask, ElementRule):
    """The paper's own m2: one LSTM over all coordinates gives T, which is scaled to a norm.

    It fits one network size, of two layers.

    Args:
        lstm: of as many inputs as a network has weights, and k^2 outputs, for k hidden units.
        norm: the Frobenius norm of T; 0 leaves it as it comes.
    """

    def __init__(self, lstm: LSTM, norm: float) -> None:
        super().__init__(lstm)
        self.norm = norm

    def propose(self, seen: Observation, state: RuleState) -> tuple[list[Element], RuleState]:
        """See :meth:`ElementRule.propose`."""
        if len(seen.chain.pairs) != 1:
            raise UserError(
                f"expected a two-layer network for the flat LSTM, got "
                f"{len(seen.chain.pairs) + 1} layers: use a coordinate-wise meta-optimizer"
            )
        output, following = self.lstm(flat_gradient(seen, self.lstm), state)
        batch = seen.gradients[0].shape[: seen.batch_dims]
        width = math.isqrt(len(output))
        element = output.mT.reshape(*batch, width, width)
        if self.norm > 0:
            size = torch.linalg.matrix_norm(element, keepdim=True)
            element = element * (self.norm / (size + TINY))
        return [Element(element)], following


@ELEMENT_RULES.register("flat")
@dataclass(frozen=True)
class FlatElementConfig(FlatFields, ElementConfig):
    """The config of an m2 over all coordinates at once, as in the paper.

    Attributes:
        norm: the Frobenius norm that T is scaled to; 0 leaves it as it comes.
    """

    norm: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative("norm", self.norm)

    def build(self, action: Action, generator: torch.Generator) -> FlatElement:
        """See :meth:`ElementConfig.build`."""
        entries = self.flat_widths[1] ** 2
        return FlatElement(self.lstm(self.coordinates, entries, generator), self.norm)
