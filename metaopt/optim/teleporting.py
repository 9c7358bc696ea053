"""A wrapper that lets any ``torch.optim.Optimizer`` teleport (section 5.1, eq. 5)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metaopt.errors import UserError
from metaopt.optim.buffers import POLICIES, check_transport, reset, transport
from metaopt.optim.schedule import Schedule, as_predicate
from metaopt.symmetry import ACTIONS, Action, Teleportation
from metaopt.symmetry.action import check_transports
from metaopt.symmetry.auto import AUTO, Returns, fingerprint, for_all_data
from metaopt.symmetry.functional import LossOnBatch
from metaopt.symmetry.orbit import ActingSite, Orbit
from metaopt.symmetry.search import Search, check_search, moves_by_group
from metaopt.symmetry.teleportation import OutputChange
from metaopt.target import Batch, check_loss_fn, given, target_of


class TeleportingOptimizer(torch.optim.Optimizer):
    """A wrapper that lets any optimizer teleport: w <- g.w at some steps, then the base's own step.

    A teleportation moves the weights along a symmetry of the network, to a point of the same loss
    where the gradient is larger. Without teleportations the wrapper equals its base bit for bit.

    Args:
        base: the optimizer to wrap; it must hold the parameters of ``model``.
        model: any ``nn.Module`` of one input, or a batch of tasks of ``metaopt.tasks``.
        loss_fn: a function from (the model's output, y) to a scalar loss; tasks need none.
        action: "auto", a name of ``metaopt.symmetry.ACTIONS``, or an
            :class:`~metaopt.symmetry.Action`. "auto" takes at each site the largest group that is
            exact for all data. If no site has such a group, it takes GL, as long as GL is exact on
            the batch and no other batch came before. :meth:`report` lists the sites.
        schedule: the steps before which to teleport, counted from 0; see :data:`Schedule`. At such
            a step the gradient is needed at the new point: give :meth:`step` a closure or a batch.
        search: how the new point is found. By default it is gradient ascent, for a network up to
            twice the squared gradient norm; that often costs more than it brings, so compare with
            no teleports. :class:`~metaopt.symmetry.LevelSetTeleport` uses no group and so takes any
            model; it keeps the loss but not the outputs, and ignores ``action``.
        buffers: what happens to the base's buffers, such as momenta, at a teleport: "keep", "reset"
            or "transport" (appendix G.1; see ``metaopt.optim.buffers``).
        sites: pairs of names (incoming layer, outgoing layer) of a network to use, instead of all
            sites.
        max_defect: largest relative change of a network's output that a teleport may make, on its
            batch or on the held-out one. A teleport with a larger change is reverted and counted in
            ``undone``. (For tasks the action itself rejects such moves.)

    Attributes:
        teleportation: the move of the last step or call, or None.
        made: number of teleports that stayed.
        undone: number of teleports that were reverted because of their invariance error.

    Raises:
        UserError: for options that do not fit the model or each other.

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
            raise UserError(
                f"expected a positive max_defect, got {max_defect}: inf reverts nothing"
            )
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
        self._exact_for_all_data = any(for_all_data(site) for site in target.sites.found)
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
        """Check that there is a site where a group can act."""
        if self.action != AUTO:
            self.target.check_action(self.action, tuple(ACTIONS), "leave the action out")
        elif not self._exact_for_all_data and not self.target.chain.pairs:
            raise UserError(
                f"expected a model with a place for a group to act, got none "
                f"({self.target.sites.why()}): use the optimizer without teleportation"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Return all attributes but hooks, as torch would keep only its own.

        The method ``step`` is left out too, since a learning-rate scheduler replaces it by one that
        steps the original.
        """
        lost = ("_own_groups", "_own_state", "teleportation", "step")
        kept = {k: v for k, v in self.__dict__.items() if k not in lost and "hook" not in k}
        return {**kept, "teleportation": None}

    @property  # type: ignore[override]
    def state(self) -> dict[Any, Any]:
        """The state of the base optimizer."""
        base = self.__dict__.get("base")
        state: dict[Any, Any] = self._own_state if base is None else base.state
        return state

    @state.setter
    def state(self, state: dict[Any, Any]) -> None:
        self._own_state = state

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of the base, so that learning-rate schedulers reach them."""
        base = self.__dict__.get("base")
        groups: list[dict[str, Any]] = self._own_groups if base is None else base.param_groups
        return groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self._own_groups = groups  # torch's constructor fills them; the base's take over

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group to the base; its parameters are stepped and not teleported.

        Args:
            param_group: as for any optimizer of torch.
        """
        base = self.__dict__.get("base")
        if base is None:
            super().add_param_group(param_group)
        else:
            base.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the base, its counts, and what "auto" saw."""
        counts = {"steps": self.steps, "undone": self.undone, "made": self.made}
        batches = {"last_batch": self._last_batch, "other_came": self._other_came}
        return {"base": self.base.state_dict(), **counts, **batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Args:
            state_dict: it is not changed.

        Raises:
            UserError: if it is that of another kind of optimizer.
        """
        parts = ("base", "steps", "undone")
        if not state_dict.keys() >= set(parts):
            raise UserError(
                f"expected a state of a TeleportingOptimizer, with {', '.join(parts)}, got one "
                f"with {', '.join(map(str, state_dict))}: load a state of the base into the base, "
                f"before it is wrapped"
            )
        self.base.load_state_dict(copy.deepcopy(state_dict["base"]))
        self.steps, self.undone = state_dict["steps"], state_dict["undone"]
        self.made = state_dict.get("made", 0)  # older states do not say, here and below
        self._last_batch = state_dict.get("last_batch")
        self._other_came = state_dict.get("other_came", False)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, as the base does.

        Args:
            set_to_none: whether to set them to None instead of zero.
        """
        self.base.zero_grad(set_to_none)

    def step(
        self,
        closure: Callable[[], Any] | None = None,
        batch: tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        """Teleport if the schedule says so, then take the base's step.

        Args:
            closure: evaluates the loss and its gradients anew, as for any optimizer of torch.
            batch: (x, y), for a network: the batch to teleport on. Without a closure, the gradient
                at the new point is computed on it and replaces what is in ``grad``. Give a closure
                too if gradients are accumulated, scaled or clipped.

        Returns:
            The loss before the step, if there is a closure.

        Raises:
            UserError: at a step that teleports, if what the gradient needs was not given.
        """
        due = self.schedule(self.steps)
        if batch is not None:
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise UserError(
                    f"expected a batch of two, (x, y), got {type(batch).__name__}: call "
                    f"step(batch=(x, y))"
                )
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
        """Teleport now, and treat the buffers as ``buffers`` says.

        Gradients that were computed before belong to the old point, so call ``zero_grad`` and
        ``backward`` next.

        Args:
            x: the batch, samples in rows; a batch of tasks needs none.
            y: the second argument of the loss function, for this batch.
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
        """Teleport once on each of several minibatches, each time from where the last ended.

        This is how section 5.1 teleports. A group that acts through the data has another orbit on
        each minibatch. So a move is checked on all minibatches up to then and on the held-out
        samples. It alone is reverted if, since the start of all moves, the output on any of them
        changed by more than ``max_defect``.

        Args:
            batches: pairs (x, y).
            held_out: other samples to check on.

        Returns:
            One move for each minibatch.
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
        """Remember whether another batch came, if that matters for which group may act."""
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
        """The parameters that teleports move, in the order in which objectives see them."""
        return self.target.parameters(self._names)

    def orbit(self, x: Tensor | None = None, y: Tensor | None = None) -> Orbit:
        """Return the orbit on a batch: the points that the parameters can be moved to.

        Args:
            x: the batch, samples in rows; a batch of tasks needs none.
            y: the second argument of the loss function, for this batch.
        """
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
                "expected one batch that stays, as no group is exact for all data of this model, "
                "got several: name an action, such as action='pre_activation', to teleport on each"
            )
        raise UserError(
            f"expected a batch of at most {self.target.sites.largest_batch():g} samples, for which "
            f"a group action is exact, got one of {samples} samples: use fewer, or name the action"
        )

    def report(self) -> str:
        """Return where a group can act, where not and why, and the numbers of teleports."""
        counts = f"Teleports made: {self.made}\nTeleports undone: {self.undone}"
        return f"{self.target.report()}\n{counts}"

    def _gradient(self, batch: Batch) -> None:
        self.base.zero_grad()
        with torch.enable_grad():  # through copies of the buffers: batch norms count it once
            loss = self.target.loss(self._names, self.loss_fn, batch)(self.moving)
            loss.backward()  # type: ignore[no-untyped-call]

    def _teleport(self, batch: Batch | None, judges: Sequence[OutputChange] = ()) -> Teleportation:
        """Teleport on a batch; revert if the invariance error, or a judge's, is too large."""
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
    """Return a batch, or None unless both parts are given."""
    return None if x is None or y is None else Batch(x, y)


# Torch would wrap a step in its profiler and hooks, which the base's own has already.
TeleportingOptimizer.step.hooked = True  # type: ignore[attr-defined]
