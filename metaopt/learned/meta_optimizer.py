"""A meta-optimizer: m1 and m2 together, and one step of w <- g_t . (w + f_t) (eq. 18).

m1 is the update network, which proposes f_t. m2 is the group-element network, which proposes T_t
with g_t = exp(T_t).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from metaopt.learned.forward_record import ForwardRecord
from metaopt.learned.observation import Observation
from metaopt.learned.spec import MetaOptimizerSpec as MetaOptimizerSpec
from metaopt.symmetry import LayerChain, LayerInput, Teleportation, chain_orbit
from metaopt.symmetry.teleportation import ChainOutputs

State = dict[str, list[Tensor]]
"""The state by part: "update" of m1 and, where g is learned, "element" of m2."""


class StepInput(NamedTuple):
    """What one step is made from.

    Attributes:
        parameters: those that are stepped, in order; of a chain weight, bias, weight, ...
        gradients: of the loss, summed over tasks; one for each parameter.
        seen: the forward pass that was differentiated, where there is a record of one.
        rate: the factor of the update f_t.
        second_order: whether a meta-gradient goes through the gradients, which are then given with
            their graph, and through the Gauss-Newton scales. Else both are constants.
        absent: places of the parameters that have no gradient, for which f_t = 0.
    """

    parameters: Sequence[Tensor]
    gradients: Sequence[Tensor]
    seen: ForwardRecord | None = None
    rate: float = 1.0
    second_order: bool = False
    absent: frozenset[int] = frozenset()

    def updated(self, update: Sequence[Tensor]) -> list[Tensor]:
        """Return w + rate f in the dtype of w; a copy of w where there was no gradient.

        Args:
            update: f of each parameter.
        """
        return [
            parameter.clone()
            if index in self.absent
            else parameter + (f if self.rate == 1.0 else self.rate * f).to(parameter.dtype)
            for index, (parameter, f) in enumerate(zip(self.parameters, update, strict=True))
        ]


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

    def advance(
        self,
        chain: LayerChain,
        layer_input: LayerInput,
        now: StepInput,
        state: State,
        element_scale: float = 1.0,
    ) -> Advanced:
        """Return the outcome of one step, w <- g_t . (w + rate f_t), of a chain of layers.

        The same code serves use and meta-training.

        Args:
            chain: the layers.
            layer_input: the chain's input x; pass the same object again while x stays the same.
            now: what the step is made from.
            state: the state before the step; it is not changed.
            element_scale: the factor of T_t.
        """
        x = layer_input.original
        seen = Observation.of(chain, now.parameters, now.gradients, x, now.second_order)
        update, following = self.update.propose(seen, state["update"])
        updated = now.updated(update)
        if self.element is None:
            return Advanced(updated, {"update": following}, None)
        elements, element_state = self.element.propose(seen.numbers, state["element"])
        if element_scale != 1.0:
            elements = [element.scaled(element_scale) for element in elements]
        point = chain_orbit(chain, updated, layer_input, self.action).move(updated, elements)
        moved = Teleportation(ChainOutputs(chain, x), updated, point.parameters, point.rejected)
        if self.spec.hold:
            moved = moved.revert_rounding(now.parameters, self.spec.hold)
        return Advanced(list(moved.after), {"update": following, "element": element_state}, moved)
