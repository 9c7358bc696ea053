"""A network as a chain of layers, with a site between any two of them.

A chain has no parameters of its own. It knows how many layers there are, which have a bias, which
activation follows each and what their parameters are called, and computes with parameters that
are passed to it. Every tensor may have leading batch dimensions, which count independent networks.
A sample is a *column*, as in the paper: h_m = sigma(W_m h_{m-1} + b_m), with h_0 of shape
``(*batch, d_0, samples)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from metaopt.symmetry.actions import exact_on_batch
from metaopt.symmetry.activations import Activation, Identity
from metaopt.symmetry.site import Site, matrix_view


class Layer(NamedTuple):
    """The parameters of one affine layer.

    Attributes:
        weight: W_m, ``(*batch, out, in)``.
        bias: b_m, ``(*batch, out)``, or None.
    """

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, h: Tensor) -> Tensor:
        """Return W h + b, shape ``(*batch, out, samples)``."""
        z = self.weight @ h
        return z if self.bias is None else z + self.bias.unsqueeze(-1)

    def augmented(self) -> Tensor:
        """Return the augmented weight [W b], ``(*batch, out, in + 1)``; W without a bias."""
        if self.bias is None:
            return self.weight
        return torch.cat((self.weight, self.bias.unsqueeze(-1)), dim=-1)

    def map(self, function: Callable[[Tensor], Tensor]) -> Layer:
        """Return the layer with ``function`` applied to each of its tensors."""
        return Layer(function(self.weight), None if self.bias is None else function(self.bias))


class LayerPair(NamedTuple):
    """Two consecutive layers of a chain, given by their positions.

    Attributes:
        incoming: the position of W_{m-1}.
        outgoing: the position of W_m.
    """

    incoming: int
    outgoing: int


class Layout(ABC):
    """How the parameters of a network are augmented weights of layers.

    Attributes:
        names: of the parameters, in order.
        batch_dims: how many leading dimensions of each parameter count independent networks.
    """

    names: tuple[str, ...]
    batch_dims: int

    @property
    @abstractmethod
    def pairs(self) -> tuple[LayerPair, ...]:
        """The pairs of layers between which a group can act through features."""

    @abstractmethod
    def layers(self, parameters: Sequence[Tensor]) -> list[Layer]:
        """Return parameters, in the order of ``names``, as layers.

        Args:
            parameters: with any leading dimensions.
        """

    @abstractmethod
    def parameters(self, layers: Sequence[Layer]) -> list[Tensor]:
        """Return the tensors of layers in the order of ``names``.

        Args:
            layers: the layers.
        """

    @abstractmethod
    def coefficients(self, parameters: Sequence[Tensor]) -> list[int]:
        """Return how many entries of augmented weights belong to each parameter.

        Args:
            parameters: in the order of ``names``.
        """


@dataclass(frozen=True)
class LayerChain(Layout):
    """A network made of layers in order, each an affine map and an activation.

    Attributes:
        activations: ``activations[m]`` follows layer m.
        biased: ``biased[m]`` says whether layer m has a bias.
        batch_dims: how many leading dimensions of each parameter count independent networks.
        names: names of the parameters, in the order weight, bias, weight, ...; by default "W1",
            "b1", "W2", and so on.
    """

    activations: tuple[Activation, ...]
    biased: tuple[bool, ...]
    batch_dims: int = 0
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.activations) != len(self.biased):
            raise ValueError(
                f"expected as many activations as layers ({len(self.biased)}), "
                f"got {len(self.activations)}: give one activation for each layer"
            )
        count = len(self.biased) + sum(self.biased)
        if not self.names:
            numbered = [
                (f"W{m}", *((f"b{m}",) if biased else ()))
                for m, biased in enumerate(self.biased, start=1)
            ]
            object.__setattr__(self, "names", tuple(name for pair in numbered for name in pair))
        if len(self.names) != count:
            raise ValueError(
                f"expected a name for each of {count} parameters, got {len(self.names)}: name "
                f"weights and biases in order"
            )

    @cached_property
    def alone(self) -> LayerChain:
        """The chain of one network, without dimensions that count networks."""
        return replace(self, batch_dims=0)

    @property
    def pairs(self) -> tuple[LayerPair, ...]:
        """The consecutive pairs of layers, between which a group can act."""
        return tuple(LayerPair(m, m + 1) for m in range(len(self.activations) - 1))

    @property
    def layer_names(self) -> tuple[tuple[str, str | None], ...]:
        """The names of the weight and, where there is one, of the bias of each layer."""
        names = iter(self.names)
        return tuple((next(names), next(names) if biased else None) for biased in self.biased)

    def sites(self, parameters: Sequence[Tensor]) -> tuple[Site, ...]:
        """Return the site of each pair of layers.

        Args:
            parameters: in the order of ``names``; only their shapes are looked at.
        """
        layers = self.layers(parameters)
        shapes = tuple(layer.weight.shape[-2:] for layer in layers)
        if shapes not in self._known_sites:
            self._known_sites[shapes] = _sites(self, shapes)
        return self._known_sites[shapes]

    @cached_property
    def _known_sites(self) -> dict[tuple[torch.Size, ...], tuple[Site, ...]]:
        return {}

    def layers(self, parameters: Sequence[Tensor]) -> list[Layer]:
        """Return the parameters, in the order weight, bias, weight, ..., as layers."""
        remaining = iter(parameters)
        return [
            Layer(next(remaining), next(remaining) if biased else None) for biased in self.biased
        ]

    def parameters(self, layers: Sequence[Layer]) -> list[Tensor]:
        """Return the tensors of layers in the order weight, bias, weight, ..."""
        return [tensor for layer in layers for tensor in layer if tensor is not None]

    def coefficients(self, parameters: Sequence[Tensor]) -> list[int]:
        """See :meth:`Layout.coefficients`; those of a bias belong to its weight."""
        return [
            size
            for layer in self.layers(parameters)
            for size in ([layer.augmented().numel()] + ([] if layer.bias is None else [0]))
        ]

    def parameters_of(self, model: nn.Module) -> list[nn.Parameter]:
        """Return the parameters of a model that are called as this chain's ``names``, in order."""
        return [model.get_parameter(name) for name in self.names]

    def inputs(self, layers: Sequence[Layer], x: Tensor) -> list[Tensor]:
        """Return the input of each layer, h_0 ... h_{L-1}, each ``(*batch, features, samples)``.

        Args:
            layers: the parameters.
            x: the input of the chain, h_0.
        """
        inputs = [x]
        for layer, activation in zip(layers[:-1], self.activations[:-1], strict=True):
            inputs.append(activation(layer(inputs[-1])))
        return inputs

    def output(self, layers: Sequence[Layer], x: Tensor) -> Tensor:
        """Return the output of the chain, h_L, ``(*batch, out, samples)``.

        Args:
            layers: the parameters.
            x: the input of the chain, h_0.
        """
        return self.activations[-1](layers[-1](self.inputs(layers, x)[-1]))


NO_CHAIN = LayerChain((), ())
"""A chain without layers, which stands for a model that is no chain."""


class ChainModule(nn.Module):  # not an ABC, which ``higher`` cannot patch
    """A module that describes its parameters as a chain of layers, and holds its own input.

    Attributes:
        chain: how the parameters are a chain; it has no layers if they are none.
        x: the chain's input, ``(*batch, features, samples)``.
    """

    chain: LayerChain
    x: Tensor


def _sites(chain: LayerChain, shapes: tuple[torch.Size, ...]) -> tuple[Site, ...]:
    found = []
    for pair in chain.pairs:
        incoming, outgoing = (matrix_view(*chain.layer_names[m]) for m in pair)
        between = chain.activations[pair.incoming]
        linear, scales = between == Identity(), between.homogeneous
        site = Site(
            name=f"{incoming.parameter} -> {outgoing.parameter}",
            incoming=(incoming,),
            outgoing=(outgoing,),
            between=between,
            group="positive" if scales and not linear else "GL",
            width=shapes[pair.incoming][0],
            layers=(incoming.parameter, outgoing.parameter),
            labels=() if linear else (str(between),),
            fan_in=shapes[pair.incoming][1],
            plain=True,
            homogeneous=scales,
        )
        found.append(site if scales else replace(site, exact=exact_on_batch(site)))
    return tuple(found)
