"""Orbits: all points g.w that the weights w reach when groups act at several sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, final

import torch
from torch import Tensor

from metaopt.errors import UserError
from metaopt.symmetry.action import Action, check_tensors
from metaopt.symmetry.chain import LayerChain
from metaopt.symmetry.element import Element
from metaopt.symmetry.inputs import LayerInput
from metaopt.symmetry.site import Site, named


class OrbitPoint(NamedTuple):
    """A point of an orbit.

    Attributes:
        parameters: in the order of the orbit.
        rejected: ``(*batch,)`` bool, whether a task kept its weights at one site at least.
    """

    parameters: list[Tensor]
    rejected: Tensor


class ActingSite(NamedTuple):
    """A site, and the action that acts there.

    Attributes:
        site: the site.
        action: the action.
    """

    site: Site
    action: Action


@final
class Orbit:
    """All points g.w that are reached when a group acts at each of several sites.

    Args:
        names: names of the parameters, in the order in which their values are passed.
        acting: sites with their actions, in the order of the data flow.
        chain: the chain of layers that the sites belong to, for actions that need its features.
        layer_input: the chain's input; pass the same object again while it stays the same.
    """

    def __init__(
        self,
        names: Sequence[str],
        acting: Sequence[ActingSite],
        chain: LayerChain | None = None,
        layer_input: LayerInput | None = None,
    ) -> None:
        self.names = tuple(names)
        self.acting = tuple(acting)
        self.chain = chain
        self.layer_input = layer_input

    def identity(self, parameters: Sequence[Tensor]) -> list[Element]:
        """Return the Lie algebra element T = 0 of each site, float64."""
        weights = named(self.names, parameters)
        return [acting.action.identity(acting.site, weights) for acting in self.acting]

    def elements(self, parameters: Sequence[Tensor], values: Sequence[Tensor]) -> list[Element]:
        """Return elements of the form that each site takes, with given values.

        Args:
            parameters: in order.
            values: one tensor for each site.
        """
        zeros = self.identity(parameters)
        return [zero.with_values(own) for zero, own in zip(zeros, values, strict=True)]

    def batch_dims(self, parameters: Sequence[Tensor]) -> int:
        """Return how many leading dimensions of each parameter count independent tasks."""
        dims = len(self.identity(parameters)[0].batch)
        return dims - self.acting[0].site.head_dims

    def remembering(self) -> AbstractContextManager[None]:
        """Let products of weights with the input be kept from one move to the next.

        Nobody may write into the parameters inside the ``with`` block.
        """
        return nullcontext() if self.layer_input is None else self.layer_input.remembering()

    def move(self, parameters: Sequence[Tensor], elements: Sequence[Element]) -> OrbitPoint:
        """Return the point exp(T).w, differentiable in T.

        The sites move in order. The input of a later site is computed at the weights that the
        earlier sites left.

        Args:
            parameters: the weights w, in order.
            elements: one T for each site.
        """
        weights = named(self.names, parameters)
        rejected: Tensor | None = None
        inputs = _Walk(self.chain, self.layer_input)
        for (site, action), element in zip(self.acting, elements, strict=True):
            moved = action.move(element, site, weights, inputs.at(site, weights))
            check_tensors(action, "move", moved.weights, weights)
            weights |= moved.weights
            rejected = moved.rejected if rejected is None else rejected | moved.rejected
        if rejected is None:
            rejected = torch.zeros((), dtype=torch.bool)
        return OrbitPoint([weights[name] for name in self.names], rejected)

    def pull_back(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Element]:
        """Return the gradients with respect to T, at T = 0, of a function of the parameters.

        To first order the sites move independently, so each has its own gradient.

        Args:
            parameters: the weights w, in order.
            gradients: of the function, with respect to the parameters, in order.
        """
        weights, given = named(self.names, parameters), named(self.names, gradients)
        inputs = _Walk(self.chain, self.layer_input)
        return [
            action.pull_back(given, site, weights, inputs.at(site, weights))
            for site, action in self.acting
        ]

    def transport(
        self, gradients: Sequence[Tensor], elements: Sequence[Element], squares: bool = False
    ) -> list[Tensor]:
        """Transport averages of gradients from w to exp(T).w, in order.

        Each action does it in its own way; see :meth:`Action.transport`.

        Args:
            gradients: one tensor for each parameter, in order.
            elements: one T for each site.
            squares: whether they are averages of squared gradients, entry by entry.
        """
        buffers = named(self.names, gradients)
        for (site, action), element in zip(self.acting, elements, strict=True):
            moved = action.transport(element, site, buffers, squares)
            check_tensors(action, "transport", moved, buffers)
            buffers |= moved
        return [buffers[name] for name in self.names]


class _Walk:
    """The inputs of the incoming layers of a chain's sites, each computed once on the way."""

    def __init__(self, chain: LayerChain | None, layer_input: LayerInput | None) -> None:
        self.chain, self.layer_input, self.place = chain, layer_input, 0
        self.places: dict[str, int] = {}
        if chain is not None:
            self.places = {name: place for place, (name, _) in enumerate(chain.layer_names)}

    def at(self, site: Site, weights: Mapping[str, Tensor]) -> LayerInput | None:
        """Return the input of the site's incoming layer at these weights; None if unknown."""
        if self.chain is None or self.layer_input is None:
            return None
        place = self.places.get(site.incoming[0].parameter, -1)
        if place < self.place:
            raise UserError(
                f"expected sites of the chain in the order of the data flow, got {site.name} after "
                f"{self.place} layers: sort them"
            )
        if self.place < place:
            layers = self.chain.layers([weights[name] for name in self.chain.names])
        while self.place < place:
            layer = layers[self.place]
            x = self.layer_input.original.to(layer.weight.dtype)
            h = self.chain.activations[self.place](layer(x))
            self.layer_input, self.place = LayerInput(h), self.place + 1
        return self.layer_input


def chain_orbit(
    chain: LayerChain, parameters: Sequence[Tensor], layer_input: LayerInput, action: Action
) -> Orbit:
    """Return the orbit of a chain of layers on given inputs, with one action at every pair.

    Args:
        chain: the chain.
        parameters: parameters of the chain, in order; only their shapes are used.
        layer_input: the chain's input x.
        action: the action at every pair of layers.
    """
    acting = [ActingSite(site, action) for site in chain.sites(parameters)]
    return Orbit(chain.names, acting, chain, layer_input)
