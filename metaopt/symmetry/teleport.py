"""Apply group elements to a chain, site by site: w <- g . w."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from metaopt.symmetry.action import GroupAction, LayerInput, keep_where, relative_change
from metaopt.symmetry.chain import Layer, LayerChain
from metaopt.symmetry.exponential import Element


class Teleported(Protocol):
    """A move along the orbit, as what judges it sees it."""

    @property
    def refused(self) -> Tensor: ...

    @property
    def held(self) -> Tensor | None: ...

    def defect(self) -> Tensor: ...


@dataclass(frozen=True)
class Teleportation:
    """A move along the orbit, with what it takes to judge it."""

    chain: LayerChain
    x: Tensor
    before: list[Layer]
    layers: list[Layer]  # after
    refused: Tensor  # (*batch,) bool: at least one site kept its weights for this problem
    held: Tensor | None = None  # (*batch,) bool: taken back by :meth:`hold`

    @torch.no_grad()
    def defect(self) -> Tensor:
        """||F(g.w) - F(w)||_F / ||F(w)||_F on the batch, ``(*batch,)``.

        Measured in float64 at the weights as they are stored, so the rounding of float32
        weights is part of it.
        """
        return relative_change(self._output(self.before), self._output(self.layers))

    def hold(self, updated_from: Sequence[Layer], fraction: float) -> Teleportation:
        """Take the move back where it changes the output too much, by its defect or by rounding.

        Too much is more than ``fraction`` of what the update before it changed. Where nothing is
        left to gain by an update, moving along the orbit would only round the weights again.

        Args:
            updated_from: the layers before that update, which ended at ``before``.
            fraction: above 0.
        """
        with torch.no_grad():
            first, updated, moved = (
                self._output(layers) for layers in (updated_from, self.before, self.layers)
            )
            step, change = (torch.linalg.matrix_norm(d) for d in (updated - first, moved - updated))
            held = change > fraction * step
        layers = [
            keep_where(held, before, after)
            for before, after in zip(self.before, self.layers, strict=True)
        ]
        return replace(self, layers=layers, held=held)

    def _output(self, layers: Sequence[Layer]) -> Tensor:
        return self.chain.output([layer.map(Tensor.double) for layer in layers], self.x.double())


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
            x = current.original.to(moved[at].weight.dtype)
            h = chain.activations[at](moved[at](x))
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
