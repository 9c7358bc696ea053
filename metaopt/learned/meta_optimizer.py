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
from metaopt.learned.observation import TINY, Observation, SeenLoss
from metaopt.learned.spec import MetaOptimizerSpec as MetaOptimizerSpec
from metaopt.learned.state import State as State
from metaopt.roles import Role
from metaopt.symmetry import Element, LayerChain, LayerInput, Site, Teleportation, chain_orbit
from metaopt.symmetry.teleportation import ChainOutputs


class StepInput(NamedTuple):
    """What one step is made from.

    Attributes:
        parameters: those that are stepped, in order; of a chain weight, bias, weight, ...
        gradients: of the loss, summed over tasks; one for each parameter.
        seen: the forward pass that was differentiated, where there is a record of one.
        rate: the factor of the update f_t; below 1 it is a factor of T_t too, so that 0 moves
            nothing.
        second_order: whether a meta-gradient goes through the gradients, which are then given with
            their graph, and through the Gauss-Newton scales. Else both are constants.
        absent: places of the parameters that have no gradient, for which f_t = 0.
        frozen: names of the parameters that stay where they are; no group acts at their sites.
        weight_decay: by how much of the length of f_t the weights are drawn to 0.
        trust: the factor of both f_t and T_t (:mod:`metaopt.learned.trust`).
        losses: the loss of each task, where a forward pass gives it.
        loss: what is known of the loss, as rules see it.
        roles: what each parameter is for, where it is known.
        total_steps: how many steps the run is going to have; 0 if it is not known.
        made: how many of them were made before, if it is known.
    """

    parameters: Sequence[Tensor]
    gradients: Sequence[Tensor]
    seen: ForwardRecord | None = None
    rate: float = 1.0
    second_order: bool = False
    absent: frozenset[int] = frozenset()
    frozen: frozenset[str] = frozenset()
    weight_decay: float = 0.0
    trust: float = 1.0
    losses: Tensor | None = None
    loss: SeenLoss | None = None
    roles: Sequence[Role] | None = None
    total_steps: int = 0
    made: int | None = None

    def alone(self, chain: LayerChain) -> StepInput:
        """Return the input of a step of one task, without dimensions that count tasks.

        Args:
            chain: the layers, with such dimensions.
        """
        parameters, gradients = (
            [own.reshape(own.shape[chain.batch_dims :]) for own in tensors]
            for tensors in (self.parameters, self.gradients)
        )
        loss = self.loss
        if loss is not None and loss.targets is not None:
            loss = loss._replace(targets=loss.targets.reshape(loss.targets.shape[-2:]))
        return self._replace(parameters=parameters, gradients=gradients, loss=loss)

    def observed(self, chain: LayerChain, x: LayerInput) -> Observation:
        """Return what m1 and m2 see of a chain of layers.

        Args:
            chain: the layers.
            x: the chain's input.
        """
        return Observation.of(
            chain,
            self.parameters,
            self.gradients,
            x.original,
            self.second_order,
            self.loss,
            self.rate * self.trust,
            self.absent,
            self.roles,
            self.total_steps,
            x,
        )

    def updated(self, update: Sequence[Tensor], batch_dims: int = 0) -> list[Tensor]:
        """Return w + rate trust (f - weight_decay ||f|| w / ||w||) in the dtype of w.

        Where there was no gradient it is a copy of w. The decay is decoupled: it does not enter
        what m1 sees. Its length is the fraction ``weight_decay`` of that of f, so it means the same
        whatever step sizes m1 has learned.

        Args:
            update: f of each parameter.
            batch_dims: how many leading dimensions of each parameter count tasks.
        """
        return [
            parameter.clone()
            if index in self.absent
            else parameter + self._step(parameter, f, batch_dims).to(parameter.dtype)
            for index, (parameter, f) in enumerate(zip(self.parameters, update, strict=True))
        ]

    def _step(self, parameter: Tensor, f: Tensor, batch_dims: int) -> Tensor:
        if self.weight_decay:
            length, size = (_norms(tensor, batch_dims) for tensor in (f, parameter.to(f.dtype)))
            f = f - self.weight_decay * length / (size + TINY) * parameter.to(f.dtype)
        factor = self.rate * self.trust
        return f if factor == 1.0 else factor * f

    def scaled(self, elements: Sequence[Element], sites: Sequence[Site]) -> list[Element]:
        """Return T of each site, times trust and times a rate below 1; 0 where it is frozen.

        Args:
            elements: T of each site.
            sites: where they act.
        """
        fixed = [not self.frozen.isdisjoint(site.parameters) for site in sites]
        scale = min(self.rate, 1.0) * self.trust
        return [
            element.map(torch.zeros_like)
            if stays or scale == 0
            else element
            if scale == 1
            else element.scaled(scale)
            for element, stays in zip(elements, fixed, strict=True)
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
        only_where_exact: whether m2 acts only where its group is exact on all data.
        update: m1.
        element: m2, or None where g = I.
    """

    def __init__(self, spec: MetaOptimizerSpec, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.spec = spec
        self.action = spec.build_action()
        self.only_where_exact = spec.update_config.only_where_exact
        self.update = spec.build_update(generator)
        self.element = spec.build_element(self.action, generator)

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
        teleports: bool = True,
    ) -> Advanced:
        """Return the outcome of one step, w <- g_t . (w + rate f_t), of a chain of layers.

        The same code serves use and meta-training.

        Args:
            chain: the layers.
            layer_input: the chain's input x; pass the same object again while x stays the same.
            now: what the step is made from.
            state: the state before the step; it is not changed.
            teleports: whether m2 acts.
        """
        lead = now.parameters[0].shape[: chain.batch_dims]
        alone = lead and lead.numel() == 1 and not torch.is_grad_enabled()
        if alone and self.update.sees_losses:  # others stay as they are, bit for bit
            return self._advance_alone(chain, layer_input, now, state, teleports)
        seen = now.observed(chain, layer_input)
        update, following = self.update.propose(seen, state["update"])
        updated = now.updated(update, chain.batch_dims)
        if self.element is None:
            return Advanced(updated, {"update": following}, None)
        if not teleports:
            return Advanced(updated, {**state, "update": following}, None)
        elements, element_state = self.element.propose(seen.numbers, state["element"])
        orbit = chain_orbit(chain, updated, layer_input, self.action)
        elements = now.scaled(elements, [site for site, _ in orbit.acting])
        point = orbit.move(updated, elements)
        outputs = ChainOutputs(chain, layer_input.original)
        moved = Teleportation(outputs, updated, point.parameters, point.rejected)
        if self.spec.hold:
            moved = moved.revert_rounding(now.parameters, self.spec.hold)
        return Advanced(list(moved.after), {"update": following, "element": element_state}, moved)

    def _advance_alone(
        self,
        chain: LayerChain,
        layer_input: LayerInput,
        now: StepInput,
        state: State,
        teleports: bool,
    ) -> Advanced:
        """The step of one task, of plain matrices, which are faster than a batch of one."""
        own = self.advance(chain.alone, layer_input.alone, now.alone(chain), state, teleports)
        parameters = _like(own.parameters, now.parameters)
        move = own.teleportation
        if move is not None:
            lead = now.parameters[0].shape[: chain.batch_dims]
            move = Teleportation(
                ChainOutputs(chain, layer_input.original),
                _like(move.before, now.parameters),
                parameters,
                move.rejected.reshape(lead),
                None if move.reverted is None else move.reverted.reshape(lead),
            )
        return Advanced(parameters, own.state, move)


def _like(tensors: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """Tensors in the shapes of others."""
    return [own.view(other.shape) for own, other in zip(tensors, like, strict=True)]


def _norms(tensor: Tensor, batch_dims: int) -> Tensor:
    """The norm of each task, with dimensions of 1 that broadcast."""
    own = list(range(batch_dims, tensor.dim()))
    return torch.linalg.vector_norm(tensor, dim=own, keepdim=True) if own else tensor.abs()
