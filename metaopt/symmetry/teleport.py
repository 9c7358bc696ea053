"""Apply group elements to a chain, site by site: w <- g . w."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaopt.chain import Layer, LayerChain
from metaopt.symmetry.action import GroupAction, LayerInput, relative_change
from metaopt.symmetry.exponential import Element


@dataclass(frozen=True)
class Teleportation:
    """A move along the orbit, with what it takes to judge it."""

    chain: LayerChain
    x: Tensor
    before: list[Layer]
    layers: list[Layer]  # after
    refused: Tensor  # (*batch,) bool: at least one site kept its weights for this problem

    @torch.no_grad()
    def defect(self) -> Tensor:
        """||F(g.w) - F(w)||_F / ||F(w)||_F on the batch, ``(*batch,)``.

        Measured in float64 at the weights as they are stored, so the rounding of float32
        weights is part of it.
        """
        outputs = [
            self.chain.output([layer.map(Tensor.double) for layer in layers], self.x.double())
            for layers in (self.before, self.layers)
        ]
        return relative_change(*outputs)


def teleport(
    chain: LayerChain,
    layers: Sequence[Layer],
    layer_input: LayerInput,
    elements: Sequence[Element],
    action: GroupAction,
) -> Teleportation:
    """Let exp(elements[s]) act at each site s, in order from the input.

    The inputs of later sites are computed at the weights that the earlier ones left.

    Args:
        layer_input: the chain's input x; pass the same object again while x is the same.
        elements: one Lie-algebra element a site.
    """
    moved = list(layers)
    current = layer_input
    at = 0
    refused = torch.zeros_like(layer_input.finite)
    for site, element in zip(chain.sites, elements, strict=True):
        while at < site.incoming:
            h = chain.activations[at](moved[at](current.original))
            current, at = LayerInput(h), at + 1
        move = action.act(
            element,
            moved[site.incoming],
            moved[site.outgoing],
            current,
            chain.activations[site.incoming],
        )
        moved[site.incoming], moved[site.outgoing] = move.incoming, move.outgoing
        refused = refused | move.refused
    return Teleportation(chain, layer_input.original, list(layers), moved, refused)
