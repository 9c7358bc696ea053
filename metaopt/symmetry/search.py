"""Where to teleport: gradient ascent on the Lie algebra, with backtracking (eq. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaopt.chain import Layer, LayerChain
from metaopt.errors import UserError
from metaopt.symmetry.action import GroupAction, LayerInput, per_problem
from metaopt.symmetry.objectives import LossFunction, Objective, gradient_norm
from metaopt.symmetry.teleport import Teleportation, teleport


@dataclass(frozen=True)
class GradientAscent:
    """Climbs an objective along the orbit; no problem ends below its start.

    Each iteration is w <- exp(a G) . w with G the objective's gradient in T at T = 0, divided by
    its norm: ``size`` is the Frobenius norm of the first T tried, a problem's own size is halved
    while its objective would not rise, and after ``halvings`` failures it stays where it is.

    Attributes:
        iterations: steps of ascent.
        size: initial norm of T a step, the same for each problem.
        halvings: attempts a step.
        objective: what is climbed, ||grad L||^2 by default.
    """

    iterations: int = 10
    size: float = 0.1
    halvings: int = 8
    objective: Objective = gradient_norm

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.halvings < 0 or not 0 < self.size < float("inf"):
            raise UserError(
                f"expected iterations >= 1, halvings >= 0 and size > 0, got "
                f"{self.iterations}, {self.halvings} and {self.size}: "
                "the defaults are 10, 8 and 0.1"
            )

    def __call__(
        self,
        chain: LayerChain,
        layers: Sequence[Layer],
        layer_input: LayerInput,
        loss: LossFunction,
        action: GroupAction,
    ) -> Teleportation:
        """The move from ``layers`` to where the ascent ends.

        ``refused`` marks problems that stayed where they were because their last move was refused.
        """
        current = [layer.map(Tensor.detach) for layer in layers]
        value = self._value(chain, current, loss)
        size = torch.full_like(value, self.size, dtype=torch.float64)
        refused = torch.zeros_like(value, dtype=torch.bool)
        moved = torch.zeros_like(refused)
        for _ in range(self.iterations):
            directions = self._directions(chain, current, layer_input, loss, action)
            climbing = torch.ones_like(refused)
            for _ in range(self.halvings + 1):
                elements = [per_problem(size * climbing, d) * d for d in directions]
                with torch.no_grad():
                    move = teleport(chain, current, layer_input, elements, action)
                layers_tried = [layer.map(Tensor.detach) for layer in move.layers]
                tried = self._value(chain, layers_tried, loss)
                better = climbing & ~move.refused & (tried > value)
                current = [
                    _choose(better, new, old)
                    for new, old in zip(layers_tried, current, strict=True)
                ]
                value = torch.where(better, tried, value)
                moved = moved | better
                refused = torch.where(climbing, move.refused, refused)
                climbing = climbing & ~better
                size = torch.where(climbing, size / 2, size)
                if not climbing.any():
                    break
        return Teleportation(chain, layer_input.original, list(layers), current, refused & ~moved)

    def _value(self, chain: LayerChain, layers: Sequence[Layer], loss: LossFunction) -> Tensor:
        with torch.enable_grad():
            return self.objective(chain, layers, loss).detach().double()

    def _directions(
        self,
        chain: LayerChain,
        layers: Sequence[Layer],
        layer_input: LayerInput,
        loss: LossFunction,
        action: GroupAction,
    ) -> list[Tensor]:
        """Unit gradients of the objective in T at T = 0, jointly over the sites of a problem."""
        elements = []
        for site in chain.sites:
            weight = layers[site.incoming].weight
            width = weight.shape[-2]
            trailing = (width,) if action.diagonal else (width, width)
            elements.append(
                weight.new_zeros(
                    (*weight.shape[:-2], *trailing), dtype=torch.float64, requires_grad=True
                )
            )
        with torch.enable_grad():
            move = teleport(chain, layers, layer_input, elements, action)
            value = self.objective(chain, move.layers, loss)
            gradients = torch.autograd.grad(value.sum(), elements)
        gradients = tuple(g.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) for g in gradients)
        squares = [g.square().flatten(start_dim=chain.batch_dims).sum(-1) for g in gradients]
        norm = torch.stack(squares).sum(dim=0).sqrt().clamp(min=1e-300)
        return [g / per_problem(norm, g) for g in gradients]


def _choose(mask: Tensor, new: Layer, old: Layer) -> Layer:
    chosen = [
        None if a is None or b is None else torch.where(per_problem(mask, a), a, b)
        for a, b in zip(new, old, strict=True)
    ]
    weight, bias = chosen
    assert weight is not None
    return Layer(weight, bias)
