"""Any ``torch.optim.Optimizer`` that teleports (section 5.1, eq. 5)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metaopt.errors import UserError
from metaopt.optim.buffers import POLICIES, check_transport, reset, transport
from metaopt.optim.schedule import Schedule, as_predicate
from metaopt.optim.state import check_own_state
from metaopt.symmetry import ACTIONS, Action, Teleportation
from metaopt.symmetry.action import check_transports
from metaopt.symmetry.auto import AUTO, Returns, fingerprint, for_all_data
from metaopt.symmetry.functional import LossOnBatch
from metaopt.symmetry.orbit import ActingSite, Orbit
from metaopt.symmetry.search import Search, check_search, moves_by_group
from metaopt.symmetry.teleportation import OutputChange
from metaopt.target import Batch, check_loss_fn, given, target_of


class TeleportingOptimizer(torch.optim.Optimizer):
    """Wraps a base optimizer: w <- g.w at scheduled steps or on call, then the base's own step.

    Never teleporting, it equals its base bit for bit.

    Args:
        base: the optimizer to wrap; it must hold the parameters of ``model``.
        model: any ``nn.Module`` of one input, or a batch of tasks of ``metaopt.tasks``.
        loss_fn: (the model's output, y) -> scalar loss; tasks need none.
        action: "auto", a name of ``metaopt.symmetry.ACTIONS``, or an
            :class:`~metaopt.symmetry.Action`. "auto" takes at each site the largest group that is
            exact for all data; where there is none, GL if it is exact on the batch and no other
            batch was given before. :meth:`report` says what there is to act on.
        schedule: see :data:`Schedule`; the first step is 0. A step that teleports needs the
            gradient at the new point: give it a closure, or ``batch=(x, y)``.
        search: how the point is found; of a network by default an ascent to at most twice the
            squared gradient norm, which often costs more than it brings: compare with no teleports.
            :class:`~metaopt.symmetry.LevelSetTeleport` takes any model, by no group: it keeps the
            loss and not the outputs, and the action does not matter.
        buffers: what becomes of the base's buffers (momenta and the like) at a teleport: "keep",
            "reset", or "transport" (appendix G.1; ``metaopt.optim.buffers``).
        sites: names of (incoming, outgoing) layers of a network to use, instead of all found.
        max_defect: a teleport that changes a network's output by more than this fraction, on its
            batch or on the held-out one, is reverted and counted in ``undone``. (Of tasks, the
            action rejects each move that does.)

    Attributes:
        teleportation: the move of the last step or call, or None.
        made, undone: how many teleports stayed, and were reverted for their invariance error.

    Options that do not fit are a ``UserError``, before anything is built.

    Example:
        >>> model = nn.Sequential(nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 2))
        >>> base, loss_fn = torch.optim.Adam(model.parameters(), 1e-3), nn.CrossEntropyLoss()
        >>> optimizer = TeleportingOptimizer(base, model, loss_fn, action="rescaling")
        >>> x, y = torch.rand(8, 9), torch.arange(8) % 2
        >>> bool(optimizer.teleport(x, y).invariance_error() < 1e-5)
        True
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        model: nn.Module,
        loss_fn: LossOnBatch | None = None,
        action: str | Action = AUTO,
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
        check_loss_fn(loss_fn)
        times = as_predicate(schedule)
        if isinstance(action, str) and action not in (AUTO, *ACTIONS):
            raise UserError(
                f"expected an action of {AUTO}, {', '.join(ACTIONS)}, got {action!r}: name one"
            )
        target = target_of(model, sites)
        if target.needs_batch and loss_fn is None:
            raise UserError(
                f"expected a loss_fn for a {type(model).__name__}, got none: give a function of "
                f"the model's output and y"
            )
        if buffers == "transport" and isinstance(action, Action):
            check_transports(action)
        self.target = target
        self.action = action
        self.search = search or target.search
        if moves_by_group(self.search):
            self._check_place()
        elif buffers == "transport":
            raise UserError(
                f"expected buffers 'keep' or 'reset' for {type(self.search).__name__}, got "
                f"'transport': it moves by no group that buffers could follow"
            )
        held = {id(p) for group in base.param_groups for p in group["params"]}
        if not held >= {id(p) for p in self.moving}:
            raise UserError(
                "expected a base optimizer that holds the model's parameters, got one of others: "
                "build it from model.parameters()"
            )
        super().__init__(list(model.parameters()), dict(base.defaults))
        self.base = base
        self.model = model
        self.loss_fn = loss_fn
        self.schedule = times
        self.buffers = buffers
        self.max_defect = max_defect
        self.steps = 0
        self.undone = 0
        self.made = 0
        self.teleportation: Teleportation | None = None
        self._last_batch: Tensor | None = None  # three numbers that tell it from another
        self._other_came = False

    def _check_place(self) -> None:
        """Refuse a model where no group can act."""
        if self.action != AUTO:
            self.target.check_action(self.action, tuple(ACTIONS), "leave the action out")
        elif not self._exact_for_all_data and not self.target.chain.pairs:
            raise UserError(
                f"expected a model with a place for a group to act, got none "
                f"({self.target.sites.why()}): use the optimizer without teleportation"
            )

    @property
    def _exact_for_all_data(self) -> bool:
        """Whether at some site a group keeps the function on all data."""
        return any(for_all_data(site) is not None for site in self.target.sites.found)

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
        if batch is not None:
            self._note(batch[0])
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
        on = None if batch is None else Batch(*batch)
        network = self.target.needs_batch
        if (network and on is None) or (not network and closure is None):
            raise UserError(
                f"expected {'batch=(x, y)' if network else 'a closure'} at a step that teleports, "
                f"got none: the gradient is needed again at the new point"
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.steps += 1
        move = self._teleport(on)
        if closure is None and on is not None and not bool(move.stayed.all()):
            self._gradient(on)
        self.base.step(closure)
        return loss

    def teleport(
        self, x: Tensor | None = None, y: Tensor | None = None, held_out: Tensor | None = None
    ) -> Teleportation:
        """Move the weights along the orbit now, and treat the buffers as the policy says.

        Gradients that are there belong to the old point: call ``zero_grad`` and ``backward`` next.

        Args:
            x, y: the batch, samples in rows; a batch of tasks needs none.
            held_out: other samples, on which the invariance error is checked too.

        Returns:
            The move, with its invariance error.
        """
        if x is not None:
            self._note(x)
        return self._teleport(_batch_of(x, y), self._judges(held_out))

    def teleport_on(
        self, batches: Iterable[tuple[Tensor, Tensor]], held_out: Tensor | None = None
    ) -> list[Teleportation]:
        """Make one teleport on each minibatch (x, y), from where the last ended (section 5.1).

        Where a group acts through the data, each minibatch has an orbit of its own. So a move is
        reverted, alone, if the way from the start of all to its end changes the output on any
        minibatch up to then, or on the held-out samples, by more than ``max_defect``.
        """
        if not self.target.needs_batch:
            raise UserError(
                "expected a network for minibatches, got tasks with their data: use teleport()"
            )
        origin = [parameter.detach().clone() for parameter in self.moving]
        judges = self._judges(held_out)
        moves = []
        for x, y in batches:
            judges.append(OutputChange(self.target.outputs(self._names, x), origin))
            moves.append(self._teleport(Batch(x, y), judges))
        return moves

    def _judges(self, held_out: Tensor | None) -> list[OutputChange]:
        if held_out is None or not self.target.needs_batch or not moves_by_group(self.search):
            return []
        return [OutputChange(self.target.outputs(self._names, held_out), self.moving)]

    def _note(self, x: Tensor) -> None:
        """Remember whether another batch came, where it matters which group may act."""
        if self.action != AUTO or not self.target.needs_batch or self._exact_for_all_data:
            return
        mark = fingerprint(x)
        if self._last_batch is not None and not torch.equal(mark, self._last_batch):
            self._other_came = True
        self._last_batch = mark

    @property
    def _names(self) -> tuple[str, ...]:
        """The names of the parameters that teleports move, in order."""
        if moves_by_group(self.search):
            return self.target.moving(self.action)
        return self.target.trainable()

    @property
    def moving(self) -> list[nn.Parameter]:
        """The parameters that teleports move, in the order that objectives see them."""
        return self.target.parameters(self._names)

    def orbit(self, x: Tensor | None = None, y: Tensor | None = None) -> Orbit:
        """Return the points that the parameters can be moved to, on a batch."""
        return self._orbit(_batch_of(x, y))

    def _orbit(self, batch: Batch | None) -> Orbit:
        if not moves_by_group(self.search):
            return Orbit(self._names, ())
        x = given(batch).x if self.target.needs_batch else None
        return self.target.orbit(self._names, self._acting(x), x)

    def _acting(self, x: Tensor | None) -> tuple[ActingSite, ...]:
        samples = None if x is None else len(x)
        returns = Returns.NO if self._other_came else Returns.UNKNOWN
        acting = self.target.acting(self.action, samples, returns)
        if acting:
            return acting
        if self._other_came:
            raise UserError(
                "expected one batch that stays, since no group is exact for all data here, got "
                "several: name the action, such as action='pre_activation', to move on each all "
                "the same"
            )
        raise UserError(
            f"expected a batch of at most {self.target.sites.largest_batch():g} samples, for which "
            f"a group action is exact, got one of {samples} samples: use fewer, or name the action"
        )

    def report(self) -> str:
        """Return where a group can act, where not and why, and what became of teleports."""
        counts = f"Teleports made: {self.made}\nTeleports undone: {self.undone}"
        return f"{self.target.report()}\n{counts}"

    def _gradient(self, batch: Batch) -> None:
        self.base.zero_grad()
        with torch.enable_grad():  # through copies of the buffers: batch norms count it once
            loss = self.target.loss(self._names, self.loss_fn, batch)(self.moving)
            loss.backward()  # type: ignore[no-untyped-call]

    def _teleport(self, batch: Batch | None, judges: Sequence[OutputChange] = ()) -> Teleportation:
        """On a batch; reverted where its own invariance error, or a judge's, is too large."""
        names, parameters = self._names, self.moving
        if self.buffers == "transport":
            check_transport(self.base, parameters)
        # What is kept must not alias the weights that are about to change.
        before = [parameter.detach().clone() for parameter in parameters]
        orbit = self._orbit(batch)
        result = self.search(orbit, before, self.target.loss(names, self.loss_fn, batch))
        outputs = self.target.outputs(names, None if batch is None else batch.x)
        move = Teleportation(outputs, before, result.parameters, result.rejected)
        if self.target.needs_batch and moves_by_group(self.search):
            errors = [move.invariance_error()]
            errors += [judge.invariance_error(move.after) for judge in judges]
            if not all(error <= self.max_defect for error in errors):
                self.undone += 1
                self.teleportation = move.revert(torch.tensor(True))
                return self.teleportation
        if self.buffers == "reset":
            reset(self.base, parameters)
        elif self.buffers == "transport":  # before the weights move, as an action may refuse
            transport(self.base, parameters, orbit, result.elements)
        self.teleportation = move
        self.made += 1
        with torch.no_grad():
            for parameter, value in zip(parameters, result.parameters, strict=True):
                parameter.copy_(value)
        return move


def _batch_of(x: Tensor | None, y: Tensor | None) -> Batch | None:
    """None unless both are given."""
    return None if x is None or y is None else Batch(x, y)


# Torch would wrap a step in its profiler and hooks, which the base's own has already.
TeleportingOptimizer.step.hooked = True  # type: ignore[attr-defined]
