"""Any ``torch.optim.Optimizer`` that teleports at given steps (section 5.1, eq. 5)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from metaopt.errors import UserError
from metaopt.learned.optimizer import check_chain_model
from metaopt.symmetry import GroupAction, LayerInput, Teleportation, make_action
from metaopt.symmetry.orbit import ChainOrbit
from metaopt.symmetry.search import GradientAscent

BUFFER_POLICIES = ("keep", "reset")


class TeleportingOptimizer(torch.optim.Optimizer):
    """Wraps a base optimizer: w <- g.w at scheduled steps, then the base's own step.

    Never teleporting, it equals its base bit for bit.

    Args:
        base: the optimizer to wrap; it must hold the parameters of ``model``.
        model: a module with a ``chain`` and its input ``x`` whose call gives the losses ``(B,)``.
        action: a name of ``metaopt.symmetry.ACTIONS``, or a :class:`GroupAction`.
        schedule: steps before which to teleport, the first step being 0. Such a step needs a
            closure, to have the gradient at the new point.
        search: how the point is found.
        buffers: what becomes of the base's buffers (momenta and the like) at a teleport: "keep",
            or "reset" as in appendix G.1.

    Attributes:
        teleportation: the move of the last step, or None.
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        model: nn.Module,
        action: str | GroupAction = "post_activation",
        schedule: Collection[int] = (0,),
        search: GradientAscent | None = None,
        buffers: str = "keep",
    ) -> None:
        network = check_chain_model(model)
        if buffers not in BUFFER_POLICIES:
            raise UserError(
                f"expected buffers of {', '.join(BUFFER_POLICIES)}, got {buffers!r}: name one"
            )
        if any(step < 0 for step in schedule):
            raise UserError(
                f"expected steps of 0 or more in the schedule, got {list(schedule)}: "
                "the first step is 0"
            )
        held = {id(p) for group in base.param_groups for p in group["params"]}
        if not held >= {id(p) for p in model.parameters()}:
            raise UserError(
                "expected a base optimizer that holds the model's parameters, got one of others: "
                "build it from model.parameters()"
            )
        super().__init__(list(model.parameters()), dict(base.defaults))
        self.base = base
        self.model = model
        self.names = [name for name, _ in model.named_parameters()]
        self.chain = network.chain
        self.layer_input = LayerInput(network.x)
        self.action = action if isinstance(action, GroupAction) else make_action(action)
        self.schedule = frozenset(schedule)
        self.search = search or GradientAscent()
        self.buffers = buffers
        self.steps = 0
        self.teleportation: Teleportation | None = None

    def __getstate__(self) -> dict[str, Any]:
        """All of it: torch would keep its own attributes alone."""
        lost = ("_own_groups", "_own_state", "teleportation")
        kept = {k: v for k, v in self.__dict__.items() if k not in lost and "hook" not in k}
        return {**kept, "teleportation": None}

    @property  # type: ignore[override]
    def state(self) -> dict[Any, Any]:
        """The base's."""
        base = self.__dict__.get("base")
        state: dict[Any, Any] = self._own_state if base is None else base.state
        return state

    @state.setter
    def state(self, state: dict[Any, Any]) -> None:
        self._own_state = state

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base's, so that learning-rate schedulers reach it."""
        base = self.__dict__.get("base")
        groups: list[dict[str, Any]] = self._own_groups if base is None else base.param_groups
        return groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self._own_groups = groups  # torch's constructor fills them; the base's take over

    def state_dict(self) -> dict[str, Any]:
        """The base's state and the number of steps taken, which the schedule counts."""
        return {"base": self.base.state_dict(), "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.base.load_state_dict(state_dict["base"])
        self.steps = state_dict["steps"]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the base does."""
        self.base.zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Teleport if it is time, then the base's step.

        Returns the loss before the step, at w_t.
        """
        self.teleportation = None
        if self.steps not in self.schedule:
            self.steps += 1
            return self.base.step(closure)
        if closure is None:
            raise UserError(
                "expected a closure at a step that teleports, got none: call step(closure), "
                "which is evaluated again at the new point"
            )
        with torch.enable_grad():
            loss = closure()
        self.steps += 1
        self.teleport()
        self.base.step(closure)
        return loss

    def teleport(self) -> Teleportation:
        """Move the weights along the orbit now, and treat the buffers as the policy says."""
        parameters = list(self.model.parameters())
        # What is kept must not alias the weights that are about to change.
        before = [parameter.detach().clone() for parameter in parameters]
        orbit = ChainOrbit(self.chain, self.layer_input, self.action)
        climb = self.search(
            orbit,
            before,
            lambda values: functional_call(
                self.model, dict(zip(self.names, values, strict=True)), ()
            ),
        )
        self.teleportation = orbit.teleportation(before, climb.parameters, climb.refused)
        with torch.no_grad():
            for parameter, value in zip(parameters, climb.parameters, strict=True):
                parameter.copy_(value)
        if self.buffers == "reset":
            self.base.state.clear()
        return self.teleportation
