"""A meta-optimizer: m1 and m2 together, and one step of w <- g_t . (w + f_t) (eq. 18)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from metaopt.learned.observation import Observation
from metaopt.learned.spec import MetaOptimizerSpec as MetaOptimizerSpec
from metaopt.symmetry import (
    Element,
    LayerChain,
    LayerInput,
    Teleportation,
    chain_orbit,
)
from metaopt.symmetry.teleportation import ChainOutputs

State = dict[str, list[Tensor]]
"""LSTM states by network: "update" and, where g is learned, "element"."""


class Proposal(NamedTuple):
    """f_t of each parameter and T_t of each site (none where g = I)."""

    update: list[Tensor]
    elements: Sequence[Element]


class Advanced(NamedTuple):
    """The outcome of one step."""

    parameters: list[Tensor]
    state: State
    teleportation: Teleportation | None


@final
class MetaOptimizer(nn.Module):
    """m1 and m2, built from a spec and a seed; pure: nothing is written to self."""

    def __init__(self, spec: MetaOptimizerSpec, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.spec = spec
        self.action = spec.build_action()
        self.update = spec.update_config.build(generator)
        self.element = spec.element_config.build(self.action, generator)

    def init_state(self, chain: LayerChain, parameters: Sequence[Tensor]) -> State:
        """The LSTM states before the first step."""
        state = {"update": self.update.init_state(chain, parameters)}
        if self.element is not None:
            state["element"] = self.element.init_state(chain, parameters)
        return state

    def propose(self, seen: Observation, state: State) -> tuple[Proposal, State]:
        """f_t and T_t from what is seen at w_t (eq. 19)."""
        update, following = self.update.propose(seen, state["update"])
        if self.element is None:
            return Proposal(update, []), {"update": following}
        elements, element_state = self.element.propose(seen.numbers, state["element"])
        return Proposal(update, elements), {"update": following, "element": element_state}

    def advance(
        self,
        chain: LayerChain,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor],
        layer_input: LayerInput,
        state: State,
        second_order: bool = False,
        rate: float = 1.0,
        reach: float = 1.0,
    ) -> Advanced:
        """One step, w <- g_t . (w + rate f_t); the same code serves use and meta-training.

        Args:
            parameters: weight, bias, weight, ... of the chain.
            gradients: of the summed loss, one a parameter.
            layer_input: the chain's input x; pass the same object again while x is the same.
            second_order: let a meta-gradient through the gradients, given with their graph, and
                through the scales of the step; else both are constants.
            rate, reach: factors of f_t and of T_t.
        """
        seen = Observation.of(chain, parameters, gradients, layer_input.original, second_order)
        proposal, following = self.propose(seen, state)
        updated = [
            parameter + (step if rate == 1.0 else rate * step).to(parameter.dtype)
            for parameter, step in zip(parameters, proposal.update, strict=True)
        ]
        if self.element is None:
            return Advanced(updated, following, None)
        elements = proposal.elements
        if reach != 1.0:
            elements = [element.scaled(reach) for element in elements]
        point = chain_orbit(chain, updated, layer_input, self.action).move(updated, elements)
        outputs = ChainOutputs(chain, layer_input.original)
        moved = Teleportation(outputs, updated, point.parameters, point.rejected)
        if self.spec.hold:
            moved = moved.revert_rounding(parameters, self.spec.hold)
        return Advanced(list(moved.after), following, moved)
