"""Any ``torch.optim.Optimizer`` that teleports (section 5.1, eq. 5)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from metaopt.errors import UserError
from metaopt.optim.buffers import POLICIES, check_transport, reset, transport
from metaopt.optim.schedule import Schedule, as_predicate
from metaopt.optim.state import check_own_state
from metaopt.optim.subject import AUTO, Batch, NetworkSubject, batch_of, make_subject
from metaopt.symmetry import GroupAction, Teleported
from metaopt.symmetry.loss import LossOnBatch
from metaopt.symmetry.move import Judge, NetworkMove
from metaopt.symmetry.orbit import Orbit
from metaopt.symmetry.search import Search, check_search


class TeleportingOptimizer(torch.optim.Optimizer):
    """Wraps a base optimizer: w <- g.w at scheduled steps or on call, then the base's own step.

    Never teleporting, it equals its base bit for bit.

    Args:
        base: the optimizer to wrap; it must hold the parameters of ``model``.
        model: any ``nn.Module`` of one input, or a problem of ``metaopt.tasks``.
        loss_fn: (the model's output, y) -> scalar loss; a problem needs none.
        action: "auto", a name of ``metaopt.symmetry.ACTIONS``, or a :class:`GroupAction`. "auto"
            takes rescaling, which is exact for all data, where there are sites for it, else GL
            where it is exact for the layers and the batch; :meth:`report` says what there is to
            act on.
        schedule: see :data:`Schedule`; the first step is 0. A step that teleports needs the
            gradient at the new point: give it a closure, or ``batch=(x, y)``.
        search: how the point is found; of a network by default an ascent to at most twice the
            squared gradient norm, which often costs more than it brings: compare with no teleports.
        buffers: what becomes of the base's buffers (momenta and the like) at a teleport: "keep",
            "reset", or "transport" (appendix G.1; ``metaopt.optim.buffers``).
        sites: names of (incoming, outgoing) layers of a network to use, instead of all found.
        max_defect: a teleport that changes a network's output by more than this fraction, on its
            batch or on the held-out one, is undone and counted in ``undone``. (Of a problem, the
            action refuses each move that does.)

    Attributes:
        teleportation: the move of the last step or call, or None.
        made, undone: how many teleports stayed, and were undone because of their defect.

    Options that do not fit are a ``UserError``, before anything is built.

    Example:
        >>> model = nn.Sequential(nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 2))
        >>> base, loss_fn = torch.optim.Adam(model.parameters(), 1e-3), nn.CrossEntropyLoss()
        >>> optimizer = TeleportingOptimizer(base, model, loss_fn, action="rescaling")
        >>> x, y = torch.rand(8, 9), torch.arange(8) % 2
        >>> bool(optimizer.teleport(x, y).defect() < 1e-5)
        True
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        model: nn.Module,
        loss_fn: LossOnBatch | None = None,
        action: str | GroupAction = AUTO,
        schedule: Schedule = None,
        search: Search | None = None,
        buffers: str = "keep",
        sites: Sequence[tuple[str, str]] | None = None,
        max_defect: float = 0.1,
    ) -> None:
        if buffers not in POLICIES:
            raise UserError(f"expected buffers of {', '.join(POLICIES)}, got {buffers!r}: name one")
        if not max_defect > 0:
            raise UserError(f"expected a positive max_defect, got {max_defect}: inf undoes nothing")
        check_search(search)
        times = as_predicate(schedule)
        subject = make_subject(model, loss_fn, action, sites)
        held = {id(p) for group in base.param_groups for p in group["params"]}
        if not held >= {id(p) for p in subject.parameters()}:
            raise UserError(
                "expected a base optimizer that holds the model's parameters, got one of others: "
                "build it from model.parameters()"
            )
        super().__init__(list(model.parameters()), dict(base.defaults))
        self.base = base
        self.model = model
        self.loss_fn = loss_fn
        self.subject = subject
        self.schedule = times
        self.search = search or subject.search
        self.buffers = buffers
        self.max_defect = max_defect
        self.steps = 0
        self.undone = 0
        self.made = 0
        self.teleportation: Teleported | None = None

    def __getstate__(self) -> dict[str, Any]:
        """All of it: torch would keep its own attributes alone.

        But not ``step`` as a learning-rate scheduler wraps it, which steps the original.
        """
        lost = ("_own_groups", "_own_state", "teleportation", "step")
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

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """To the base; such parameters are stepped and not teleported."""
        base = self.__dict__.get("base")
        if base is None:
            super().add_param_group(param_group)
        else:
            base.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The base's state, the number of steps taken, which the schedule counts, and of undone."""
        return {"base": self.base.state_dict(), "steps": self.steps, "undone": self.undone}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`, which stays as it is."""
        self.base.load_state_dict(copy.deepcopy(check_own_state(state_dict)["base"]))
        self.steps, self.undone = state_dict["steps"], state_dict["undone"]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the base does."""
        self.base.zero_grad(set_to_none)

    def step(
        self,
        closure: Callable[[], Any] | None = None,
        batch: tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        """Teleport if it is time, then the base's step.

        Args:
            closure: evaluates the loss and its gradient anew.
            batch: (x, y) of a network, to teleport on and, without a closure, to take the gradient
                at the new point on, in the place of what is in ``grad``. Give a closure where
                gradients are accumulated, scaled or clipped.

        Returns:
            The loss before the step, at w_t, where there is a closure.
        """
        due = self.schedule(self.steps)
        if due or self._optimizer_step_pre_hooks:
            return self._hooked_step(closure, batch, due)
        self.teleportation = None
        self.steps += 1
        loss = self.base.step(closure)
        for hook in self._optimizer_step_post_hooks.values():
            hook(self, (closure,), {})
        return loss

    @torch.optim.Optimizer.profile_hook_step
    def _hooked_step(
        self,
        closure: Callable[[], Any] | None,
        batch: tuple[Tensor, Tensor] | None,
        due: bool,
    ) -> Any:
        self.teleportation = None
        if not due:
            self.steps += 1
            return self.base.step(closure)
        given = None if batch is None else Batch(*batch)
        network = isinstance(self.subject, NetworkSubject)
        if (network and given is None) or (not network and closure is None):
            raise UserError(
                f"expected {'batch=(x, y)' if network else 'a closure'} at a step that teleports, "
                f"got none: the gradient is needed again at the new point"
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.steps += 1
        move = self._teleport(given)
        stayed = bool(move.refused.all()) or (move.held is not None and bool(move.held.all()))
        if closure is None and given is not None and not stayed:
            self._gradient(given)
        self.base.step(closure)
        return loss

    def teleport(
        self, x: Tensor | None = None, y: Tensor | None = None, held_out: Tensor | None = None
    ) -> Teleported:
        """Move the weights along the orbit now, and treat the buffers as the policy says.

        Gradients that are there belong to the old point: call ``zero_grad`` and ``backward`` next.

        Args:
            x, y: the batch, samples in rows; a problem needs none.
            held_out: other samples, on which the defect is checked too.
        """
        return self._teleport(batch_of(x, y), self._judges(held_out))

    def teleport_on(
        self, batches: Iterable[tuple[Tensor, Tensor]], held_out: Tensor | None = None
    ) -> list[Teleported]:
        """One teleport a minibatch (x, y), each from where the last ended (section 5.1).

        Where a group acts through the data, each minibatch has an orbit of its own. So a move is
        undone, alone, if the way from the start of all to its end changes the output on any
        minibatch up to then, or on the held-out samples, by more than ``max_defect``.
        """
        if not isinstance(self.subject, NetworkSubject):
            raise UserError(
                "expected a network for minibatches, got a problem with its data: use teleport()"
            )
        origin = [parameter.detach().clone() for parameter in self.subject.parameters()]
        judged = self._judges(held_out)
        moves = []
        for x, y in batches:
            judged.append(self.subject.judge(x, origin))
            moves.append(self._teleport(Batch(x, y), judged))
        return moves

    def _judges(self, held_out: Tensor | None) -> list[Judge]:
        if held_out is None or not isinstance(self.subject, NetworkSubject):
            return []
        return [self.subject.judge(held_out, self.subject.parameters())]

    @property
    def moving(self) -> list[nn.Parameter]:
        """The parameters that teleports move, in the order that objectives see them."""
        return self.subject.parameters()

    def orbit(self, x: Tensor | None = None, y: Tensor | None = None) -> Orbit:
        """Where they can move to, on a batch."""
        return self.subject.orbit(batch_of(x, y))

    def report(self) -> str:
        """Where a group can act and where not, with reasons, and what became of teleports."""
        counts = f"Teleports made: {self.made}\nTeleports undone: {self.undone}"
        return f"{self.subject.report()}\n{counts}"

    def _gradient(self, batch: Batch) -> None:
        self.base.zero_grad()
        with torch.enable_grad():  # through copies of the buffers: batch norms count it once
            loss = self.subject.loss(batch)(self.subject.parameters())
            loss.backward()  # type: ignore[no-untyped-call]

    def _teleport(self, batch: Batch | None, judged: Sequence[Judge] = ()) -> Teleported:
        """On a batch; undone where the move's own defect, or that of a judge, is too large."""
        parameters = self.subject.parameters()
        if self.buffers == "transport":
            check_transport(self.base, parameters)
        # What is kept must not alias the weights that are about to change.
        before = [parameter.detach().clone() for parameter in parameters]
        orbit = self.subject.orbit(batch)
        climb = self.search(orbit, before, self.subject.loss(batch))
        move = self.subject.moved(orbit, batch, before, climb)
        if isinstance(move, NetworkMove):
            defects = [move.defect(), *(judge.defect(move.after) for judge in judged)]
            if not all(defect <= self.max_defect for defect in defects):
                self.undone += 1
                self.teleportation = replace(move, after=before, held=torch.tensor(True))
                return self.teleportation
        self.teleportation = move
        self.made += 1
        with torch.no_grad():
            for parameter, value in zip(parameters, climb.parameters, strict=True):
                parameter.copy_(value)
        if self.buffers == "reset":
            reset(self.base, parameters)
        elif self.buffers == "transport":
            transport(self.base, parameters, orbit, climb.taken)
        return move


# Torch would wrap a step in its profiler and hooks, which the base's own has already.
TeleportingOptimizer.step.hooked = True  # type: ignore[attr-defined]
