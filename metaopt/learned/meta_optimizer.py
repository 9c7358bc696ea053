"""A meta-optimizer: m1 and m2 together, and one step of w <- g_t . (w + f_t) (eq. 18).

m1 is the update network, which proposes f_t. m2 is the group-element network, which proposes T_t
with g_t = exp(T_t).
"""

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
"""The state by part: "update" of m1 and, where g is learned, "element" of m2."""


class Proposal(NamedTuple):
    """What m1 and m2 propose for one step.

    Attributes:
        update: f_t of each parameter, of its shape.
        elements: T_t of each site; none where g = I.
    """

    update: list[Tensor]
    elements: Sequence[Element]


class Advanced(NamedTuple):
    """The outcome of one step.

    Attributes:
        parameters: after the step, in order.
        state: after the step.
        teleportation: the move by g_t; None where there was none.
    """

    parameters: list[Tensor]
    state: State
    teleportation: Teleportation | None


@final
class MetaOptimizer(nn.Module):
    """m1 (the update network) and m2 (the group-element network), built from a spec and a seed.

    Its methods are pure: state goes in and comes out, and nothing is written to the object.

    Args:
        spec: which networks, and their fields.
        seed: of the initial weights of both networks.

    Attributes:
        action: the group action that m2 proposes elements for.
        update: m1.
        element: m2, or None where g = I.
    """

    def __init__(self, spec: MetaOptimizerSpec, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.spec = spec
        self.action = spec.build_action()
        self.update = spec.update_config.build(generator)
        self.element = spec.element_config.build(self.action, generator)

    def init_state(self, chain: LayerChain, parameters: Sequence[Tensor]) -> State:
        """Return the state before the first step.

        Args:
            chain: the layers.
            parameters: of the chain, in order.
        """
        state = {"update": self.update.init_state(chain, parameters)}
        if self.element is not None:
            state["element"] = self.element.init_state(chain, parameters)
        return state

    def propose(self, seen: Observation, state: State) -> tuple[Proposal, State]:
        """Return f_t and T_t, from what is seen at w_t (eq. 19), and the next state.

        Args:
            seen: what is seen of a chain of layers.
            state: the state before the step; it is not changed.
        """
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
        element_scale: float = 1.0,
    ) -> Advanced:
        """Return the outcome of one step, w <- g_t . (w + rate f_t), of a chain of layers.

        The same code serves use and meta-training.

        Args:
            chain: the layers.
            parameters: of the chain, in the order weight, bias, weight, ...
            gradients: of the loss, summed over tasks; one for each parameter.
            layer_input: the chain's input x; pass the same object again while x stays the same.
            state: the state before the step; it is not changed.
            second_order: whether a meta-gradient goes through the gradients, which are then given
                with their graph, and through the Gauss-Newton scales. Else both are constants.
            rate: the factor of f_t.
            element_scale: the factor of T_t.
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
        if element_scale != 1.0:
            elements = [element.scaled(element_scale) for element in elements]
        point = chain_orbit(chain, updated, layer_input, self.action).move(updated, elements)
        outputs = ChainOutputs(chain, layer_input.original)
        moved = Teleportation(outputs, updated, point.parameters, point.rejected)
        if self.spec.hold:
            moved = moved.revert_rounding(parameters, self.spec.hold)
        return Advanced(list(moved.after), following, moved)
