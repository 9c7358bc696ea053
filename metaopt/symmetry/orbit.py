"""Orbits: all the points g.w that a group reaches, behind one interface for searches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from metaopt.symmetry.action import GroupAction, LayerInput
from metaopt.symmetry.chain import Layer, LayerChain
from metaopt.symmetry.teleport import Teleportation, teleport


class Moved(NamedTuple):
    """A point of an orbit."""

    parameters: list[Tensor]
    refused: Tensor  # (*batch,) bool: at least one site kept its weights for this problem


class Orbit(ABC):
    """Parameters in, parameters of the same function out. Concrete orbits are final."""

    @abstractmethod
    def identity(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """T = 0 at each site, float64."""

    @abstractmethod
    def batch_dims(self, parameters: Sequence[Tensor]) -> int:
        """How many leading dimensions of each parameter count problems."""

    @abstractmethod
    def move(self, parameters: Sequence[Tensor], elements: Sequence[Tensor]) -> Moved:
        """exp(T) . w, differentiable in T."""

    @abstractmethod
    def pull_back(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Gradients in T at T = 0 of a function on the orbit, from its gradients at ``parameters``.

        At first order the sites move independently, so each has its own.
        """

    @abstractmethod
    def transport(
        self, gradients: Sequence[Tensor], elements: Sequence[Tensor], squares: bool = False
    ) -> list[Tensor]:
        """Gradients at w, one a parameter, as gradients at exp(T) . w: by the inverse transpose.

        Args:
            squares: they are squares of gradients, entry by entry.
        """


@final
class ChainOrbit(Orbit):
    """Of a chain of layers, on the data that it is given.

    Args:
        layer_input: the chain's input x; pass the same object again while x is the same.
    """

    def __init__(self, chain: LayerChain, layer_input: LayerInput, action: GroupAction) -> None:
        self.chain = chain
        self.layer_input = layer_input
        self.action = action

    def identity(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        elements = []
        layers = self.chain.layers(parameters)
        for site in self.chain.sites:
            weight = layers[site.incoming].weight
            width = weight.shape[-2]
            trailing = (width,) if self.action.diagonal else (width, width)
            elements.append(weight.new_zeros((*weight.shape[:-2], *trailing), dtype=torch.float64))
        return elements

    def batch_dims(self, parameters: Sequence[Tensor]) -> int:
        return self.chain.layers(parameters)[0].weight.dim() - 2

    def move(self, parameters: Sequence[Tensor], elements: Sequence[Tensor]) -> Moved:
        layers = self.chain.layers(parameters)
        moved = teleport(self.chain, layers, self.layer_input, elements, self.action)
        return Moved(self.chain.parameters(moved.layers), moved.refused)

    def pull_back(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
        layers, slopes = self.chain.layers(parameters), self.chain.layers(gradients)
        layer_input = self.layer_input
        pulled: list[Tensor] = []
        for site in self.chain.sites:
            if pulled:
                before = site.incoming - 1
                x = layer_input.original.to(layers[before].weight.dtype)
                h = self.chain.activations[before](layers[before](x))
                layer_input = LayerInput(h)
            pulled.append(
                self.action.pull_back(
                    (slopes[site.incoming], slopes[site.outgoing]),
                    layers[site.incoming],
                    layers[site.outgoing],
                    layer_input,
                    self.chain.activations[site.incoming],
                )
            )
        return pulled

    def transport(
        self, gradients: Sequence[Tensor], elements: Sequence[Tensor], squares: bool = False
    ) -> list[Tensor]:
        """Of the linear part of the action: g^-T on the side of W_{m-1}, g on that of W_m."""
        layers = list(self.chain.layers(gradients))
        for site, element in zip(self.chain.sites, elements, strict=True):
            dense = torch.diag_embed(element) if self.action.diagonal else element
            g, inverse = self.action.exponential(dense)
            if squares:
                g, inverse = g.square(), inverse.square()
            incoming, outgoing = layers[site.incoming], layers[site.outgoing]
            dtype = incoming.weight.dtype
            bias = incoming.bias
            if bias is not None:
                bias = (inverse.mT @ bias.double().unsqueeze(-1)).squeeze(-1).to(dtype)
            weight = (inverse.mT @ incoming.weight.double()).to(dtype)
            layers[site.incoming] = Layer(weight, bias)
            moved = (outgoing.weight.double() @ g.mT).to(dtype)
            layers[site.outgoing] = outgoing._replace(weight=moved)
        return self.chain.parameters(layers)

    def teleportation(
        self, before: Sequence[Tensor], after: Sequence[Tensor], refused: Tensor
    ) -> Teleportation:
        """From one point to another, as what judges a move sees it."""
        layers, moved = self.chain.layers(before), self.chain.layers(after)
        return Teleportation(self.chain, self.layer_input.original, layers, moved, refused)
