"""A wrapper that lets any ``torch.optim.Optimizer`` teleport (section 5.1, eq. 5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import wraps
from importlib import import_module
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import profiler

from metaopt.errors import UserError, shown, unknown
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.optim.buffers import (
    POLICIES,
    AsNew,
    check_kind,
    check_transport,
    reset,
    transport,
    with_inner,
)
from metaopt.optim.closure import ClosureLoss, ClosureOutputs, restored
from metaopt.optim.gradient import Way, renew_gradients, transport_gradients
from metaopt.optim.masters import masters, move_masters
from metaopt.optim.movable import Movable, check_memory, rate_of
from metaopt.optim.schedule import Schedule, as_predicate
from metaopt.optim.state import dtype_of, keep_dtypes, mark, with_counts, without_counts
from metaopt.replicas import Replicas, replicas_of
from metaopt.symmetry import ACTIONS, Action, Teleportation
from metaopt.symmetry.action import check_transports
from metaopt.symmetry.auto import AUTO, Returns, fingerprint, for_all_data
from metaopt.symmetry.balancing import SEARCHES, balanced
from metaopt.symmetry.chain import ChainModule
from metaopt.symmetry.functional import LossOnBatch, second_derivatives
from metaopt.symmetry.network_sites import known_symmetries
from metaopt.symmetry.objectives import LossFunction
from metaopt.symmetry.orbit import ActingSite, Orbit
from metaopt.symmetry.products import SiteProducts
from metaopt.symmetry.search import (
    AGREEMENT,
    Search,
    SearchResult,
    check_search,
    moves_by_group,
)
from metaopt.symmetry.symmetries_found import Symmetries
from metaopt.symmetry.teleportation import OutputChange, Outputs
from metaopt.target import Batch, Chosen, Target, as_batch, check_loss_fn, given
from metaopt.wrappers import unwrapped

Closure = Callable[[], Any]
P = ParamSpec("P")
R = TypeVar("R")


class _Found(NamedTuple):
    """A move that a search found, which is still to be made.

    Attributes:
        move: the move.
        way: how it is made; its parameters are still where they were.
        result: of the search.
    """

    move: Teleportation
    way: Way
    result: SearchResult


_TORCH = import_module("torch.optim.optimizer")
_HOOKS_OF_ALL = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")


def _hooks_of_all() -> dict[str, Any]:
    """The hooks that torch runs at the steps of all optimizers."""
    return {name: getattr(_TORCH, name) for name in _HOOKS_OF_ALL}


@contextmanager
def _without_hooks_of_all() -> Iterator[None]:
    """Hide these hooks from a base, as they have run for the optimizer around it."""
    kept = _hooks_of_all()
    for name, hooks in kept.items():
        setattr(_TORCH, name, type(hooks)())
    try:
        yield
    finally:
        for name, hooks in kept.items():
            setattr(_TORCH, name, hooks)


def _hooked_if_needed(step: Callable[P, R]) -> Callable[P, R]:
    """A step with torch's hooks, without what they cost where there are none."""
    hooked = torch.optim.Optimizer.profile_hook_step(step)

    @wraps(step)
    def stepping(*args: P.args, **keywords: P.kwargs) -> R:
        optimizer: Any = args[0]
        own = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
        needed = own or profiler._is_profiler_enabled or any(_hooks_of_all().values())
        return (hooked if needed else step)(*args, **keywords)

    stepping.hooked = True  # type: ignore[attr-defined]
    return stepping


class TeleportingOptimizer(torch.optim.Optimizer):
    """A wrapper that lets any optimizer teleport: w <- g.w at some steps, then the base's own step.

    A teleportation moves the weights along a symmetry of the network, to a point of the same loss
    where the gradient is larger. Without teleportations the wrapper equals its base bit for bit.

    Args:
        base: the optimizer to wrap; parameters of ``model`` that it does not hold are not moved.
        model: any ``nn.Module`` of one input, or a batch of tasks of ``metaopt.tasks``.
        loss_fn: a function from (the model's output, y) to a scalar loss; tasks need none.
        action: "auto", a name of ``metaopt.symmetry.ACTIONS``, or an
            :class:`~metaopt.symmetry.Action`. "auto" takes at each site the largest group that is
            exact for all data. If no site has such a group, it takes GL, as long as GL is exact on
            the batch and no other batch came before. :meth:`report` lists the sites.
        schedule: the steps before which to teleport, counted from 0; see :data:`Schedule`. At such
            a step give :meth:`step` a closure or a batch. Parameters stay that are frozen then, or
            whose learning rate is 0; where nothing can move, the teleport is skipped and counted.
        search: how the new point is found. "balance" goes to the point of least norm at each step
            of the schedule (:class:`~metaopt.symmetry.Balance`); it needs no ``loss_fn``, and
            ``step`` no batch and no closure. By default it is gradient ascent, for a network up to
            twice the squared gradient norm; that often costs more than it brings, so compare with
            no teleports. :class:`~metaopt.symmetry.LevelSetTeleport` uses no group and so takes any
            model; it keeps the loss but not the outputs, and ignores ``action``.
        buffers: what happens to the base's buffers, such as momenta, at a teleport: "keep", "reset"
            or "transport" (appendix G.1; see ``metaopt.optim.buffers``). By default "keep", and
            "transport" for a search that needs no loss. Wrap a base that is no
            optimizer of torch before its first step, so that "reset" knows what is new.
        sites: pairs of names (incoming layer, outgoing layer) of a network to use, instead of all
            sites; or sites of :func:`metaopt.symmetries`, as for transformers. "balance" takes by
            default what it knows from the classes of modules.
        max_defect: largest relative change of a network's output that a teleport may make, on its
            batch or on the held-out one. A teleport with a larger change is reverted and counted in
            ``undone``. (For tasks the action itself rejects such moves.)

    Attributes:
        teleportation: the move of the last step or call, or None.
        steps: number of steps. A step with a learning rate of 0 and no gradient but zeros, as
            distributed checkpoints make it to set up a state, is not counted.
        made: number of teleports that were neither rejected nor reverted.
        undone: number of teleports that were reverted because of their invariance error.
        skipped: number of scheduled teleports for which nothing could move.
        next_batch: the batch of the next step, for a wrapper whose ``step`` passes none on, such as
            accelerate's; None again after that step.

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
        search: Search | str | None = None,
        buffers: str | None = None,
        sites: Chosen | None = None,
        max_defect: float = 0.1,
    ) -> None:
        _check_base(base)
        if isinstance(search, str):
            if search not in SEARCHES:
                raise UserError(unknown("a search", search, tuple(SEARCHES), "build one"))
            search = SEARCHES[search]()
        needs_loss = bool(getattr(search, "needs_loss", True))
        if buffers is None:
            buffers = "keep" if needs_loss else "transport"
        if buffers not in POLICIES:
            raise UserError(f"expected buffers of {', '.join(POLICIES)}, got {buffers!r}: name one")
        if not isinstance(max_defect, int | float) or not max_defect > 0:
            raise UserError(
                f"expected a positive max_defect, got {shown(max_defect)}: inf reverts nothing"
            )
        check_search(search)
        check_loss_fn(loss_fn)
        times = as_predicate(schedule)
        if not isinstance(action, Action) and action not in [AUTO, *ACTIONS]:
            raise UserError(unknown("an action", action, (AUTO, *ACTIONS)))
        if sites is not None and not isinstance(sites, Iterable):
            raise UserError(
                f"expected pairs of names as sites, got {shown(sites)}: give a list of (incoming, "
                f"outgoing), or leave it out"
            )
        if sites is None and not needs_loss and not isinstance(unwrapped(model), ChainModule):
            sites = balanced(known_symmetries(unwrapped(model)))
        elif sites is not None and not isinstance(sites, Symmetries):
            sites = list(sites)
        self._movable = Movable(model, base, sites)
        target = self._movable.target
        if target.needs_batch and loss_fn is None and needs_loss:
            raise UserError(
                f"expected a loss_fn for a {type(model).__name__}, got none: give a function of "
                f"the model's output and y"
            )
        self.action = action
        self.search = search or target.search
        if moves_by_group(self.search):
            self._check_place()
        else:
            target.trainable()
        if buffers == "transport":
            self._check_buffers(base)
        self._movable.update()
        if not self._may_move():
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
        self.teleportation: Teleportation | None = None
        self.next_batch: tuple[Any, Any] | None = None
        self.steps = self.made = self.undone = self.skipped = 0
        self._last_batch: list[float] | None = None  # three numbers that tell it from another
        self._other_came = False
        self._new = [AsNew(optimizer) for optimizer in with_inner(base)]
        mark(base)

    def _check_place(self) -> None:
        """Check that there is a site where a group can act."""
        if self.action != AUTO:
            self.target.check_action(self.action, tuple(ACTIONS), "leave the action out")
        elif not self._exact_for_all_data and not self.target.chain.pairs:
            raise UserError(
                f"expected a model with a place for a group to act, got none "
                f"({self.target.sites.why()}): use the base alone, or search=LevelSetTeleport(), "
                f"which needs no group",
                longest=580,
            )

    def _check_buffers(self, base: torch.optim.Optimizer) -> None:
        """Check that the buffers can be transported."""
        if not moves_by_group(self.search):
            raise UserError(
                f"expected buffers 'keep' or 'reset' for {type(self.search).__name__}, got "
                f"'transport': it moves by no group that buffers could follow"
            )
        if isinstance(self.action, Action):
            check_transports(self.action)
        check_kind(base)
        check_transport(base, list(self.target.model.parameters()))

    @property
    def target(self) -> Target:
        """The model with the sites that may be moved, as of the last look at it."""
        return self._movable.target

    @property
    def _exact_for_all_data(self) -> bool:
        return any(for_all_data(site) for site in self.target.sites.found)

    def _may_move(self) -> bool:
        """Whether there is anything that a teleport may move now."""
        if moves_by_group(self.search):
            return bool(self.target.sites.found and self.target.moving(self.action))
        return bool(self._movable.names())

    def __getstate__(self) -> dict[str, Any]:
        """Return all attributes but hooks, as torch would keep only its own.

        The method ``step`` is left out too, since a learning-rate scheduler replaces it by one that
        steps the original.
        """
        lost = ("_own_groups", "_own_state", "teleportation", "next_batch", "step")
        kept = {k: v for k, v in self.__dict__.items() if k not in lost and "hook" not in k}
        return {**kept, "teleportation": None, "next_batch": None}

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
        """Add a parameter group to the base.

        Parameters of the model are teleported from then on, and others are only stepped.

        Args:
            param_group: as for any optimizer of torch.
        """
        base = self.__dict__.get("base")
        if base is None:
            super().add_param_group(param_group)
            return
        base.add_param_group(param_group)
        for new in self._new:
            new.add(base.param_groups[-1]["params"])

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the base; its first group has the counts, and what "auto" saw."""
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        mark(self.base)
        counts = {name: getattr(self, own) for name, own in _KEPT.items()}
        counts["dtype"] = dtype_of(self.base)
        state = with_counts(self.base.state_dict(), counts)
        for after in self._optimizer_state_dict_post_hooks.values():
            state = after(self, state) or state
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, each entry in its own dtype.

        States of earlier versions load, too.

        Args:
            state_dict: it is not changed.

        Raises:
            UserError: if it is that of another kind of optimizer.
        """
        given = dict(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            given = before(self, given) or given
        state, counts = without_counts(given)
        self.base.load_state_dict(state)
        keep_dtypes(self.base, state, counts["dtype"])
        mark(self.base)
        for name, own in _KEPT.items():
            setattr(self, own, counts[name])
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, as the base does.

        Args:
            set_to_none: whether to set them to None instead of zero.
        """
        self.base.zero_grad(set_to_none)

    @_hooked_if_needed
    def step(self, closure: Closure | None = None, batch: tuple[Any, Any] | None = None) -> Any:
        """Teleport if the schedule says so, then take the base's step.

        At a teleport with a batch, the gradients are taken along to the new point
        (``metaopt.optim.gradient``). With a closure alone, the search evaluates the closure.

        Args:
            closure: evaluates the loss and its gradients anew, as for any optimizer of torch.
            batch: (x, y), for a network: the batch to teleport on.

        Returns:
            The loss before the step, if there is a closure.

        Raises:
            UserError: at a step that teleports, if what the search needs was not given. Then
                nothing has changed, and the step is not counted.
        """
        if batch is None:
            batch = self.next_batch
        self.next_batch = None
        on = None if batch is None else as_batch(batch)
        still = all(rate_of(group, wait=False) == 0 for group in self.param_groups)
        if still and closure is None and not any(map(_has_gradient, self._everything())):
            return self._step_base(closure)
        if on is not None:
            self._note(on.x)
        if not self.schedule(self.steps):
            self.steps += 1
            self.teleportation = None
            return self._step_base(closure)
        self._movable.update(with_rate=True)
        if not self._may_move():
            self.steps += 1
            self.skipped += 1
            self.teleportation = None
            return self._step_base(closure)
        loss = self._teleport_at_step(closure, on)
        self.steps += 1
        after = self._step_base(closure)
        return loss if self._needs_loss else after

    def _step_base(self, closure: Closure | None) -> Any:
        with _without_hooks_of_all() if any(_hooks_of_all().values()) else nullcontext():
            return self.base.step() if closure is None else self.base.step(closure)

    def _teleport_at_step(self, closure: Closure | None, batch: Batch | None) -> Any:
        """Teleport, and take the gradients along; return the loss before, if there is a closure."""
        if not self._needs_loss:
            with self._alone():
                found = self._find(batch)
            self._make(found)
            if not found.move.stayed.all():
                transport_gradients(found.way)
            return None
        if closure is None:
            self._check_given(batch)
            with self._alone():
                found = self._find(batch)
            self._make(found)
            self._renew_gradients(found, batch)
            return None
        with self._alone(), restored(self.model, self._everything()) as untouched:
            with torch.enable_grad():
                loss = closure()
            if idle := untouched():  # as frameworks pass it in a user's own loop
                self._check_given(batch)
            leads = batch is None and self.target.needs_batch
            found = self._find(batch, closure=closure if leads else None)
        self._make(found)
        if idle:
            self._renew_gradients(found, batch)
        elif not found.move.stayed.all():
            transport_gradients(found.way)  # if the closure adds to what was there before
        return loss

    def _check_given(self, batch: Batch | None) -> None:
        """Check that a step without a closure can teleport."""
        network = self.target.needs_batch
        if batch is None or not network:
            raise UserError(
                f"expected {'batch=(x, y)' if network else 'a closure'} at a step that teleports, "
                f"got none: the gradient is needed again at the new point"
                f"{'; a closure does, too' * network}"
            )

    def _renew_gradients(self, found: _Found, batch: Batch | None) -> None:
        if found.move.stayed.all():
            return
        names, replicas = self._movable.names(), replicas_of(self.model)
        with self._alone():
            renew_gradients(
                found.way,
                names,
                self.target.parameters(names),
                lambda names: self._loss(names, batch, replicas),
            )

    def teleport(self, x: Any = None, y: Any = None, held_out: Any = None) -> Teleportation:
        """Teleport now, and treat the buffers as ``buffers`` says.

        Gradients that were computed before belong to the old point, so call ``zero_grad`` and
        ``backward`` next. A learning rate of 0 makes no difference here.

        Args:
            x: the batch, samples in rows; a batch of tasks needs none.
            y: the second argument of the loss function, for this batch.
            held_out: other samples, on which the invariance error is checked too, also for a
                search that uses no group and so need not keep outputs.

        Returns:
            The move, with its invariance error.

        Raises:
            UserError: if nothing can be moved, or if the search cannot be made. Then nothing has
                changed.
        """
        self._movable.update()
        if x is not None:
            self._note(x)
        with self._alone():
            found = self._find(_batch_of(x, y), self._judges(held_out))
        self._make(found)
        return found.move

    def teleport_on(
        self, batches: Iterable[tuple[Any, Any]], held_out: Any = None
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
        self._movable.update()
        if self._watches:  # a batch that cannot be teleported on is refused before the first move
            batches = list(batches)
            for x, _ in batches:
                self._note(x)
                self._acting(x, replicas_of(self.model))
        origin = [parameter.detach().clone() for parameter in self.moving]
        judges = self._judges(held_out)
        moves = []
        for x, y in batches:
            with self._alone():
                if moves_by_group(self.search):
                    judges.append(OutputChange(self.target.outputs(self._names, x), origin))
                found = self._find(Batch(x, y), judges)
            self._make(found)
            moves.append(found.move)
        return moves

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hide passes through the model from learned optimizers, which record them."""
        with ExitStack() as stack:
            for own in with_inner(self.base):
                if isinstance(own, LearnedOptimizer):
                    stack.enter_context(own.recorder.paused())
            yield

    def _everything(self) -> list[nn.Parameter]:
        """All parameters of the base and of the model."""
        held = [parameter for group in self.param_groups for parameter in group["params"]]
        return list({id(p): p for p in (*held, *self.model.parameters())}.values())

    def _judges(self, held_out: Any) -> list[OutputChange]:
        if held_out is None:
            return []
        if not self.target.needs_batch:
            raise UserError(
                "expected no held_out for a batch of tasks, which has its own data, got some: "
                "leave it out"
            )
        return [OutputChange(self.target.outputs(self._names, held_out), self.moving)]

    @property
    def _watches(self) -> bool:
        """Whether it matters for "auto" which batches came."""
        return self.action == AUTO and self.target.needs_batch and not self._exact_for_all_data

    def _note(self, x: Any) -> None:
        """Remember whether another batch came, if that matters for which group may act."""
        if self._watches:
            mark = fingerprint(x).tolist()
            if self._last_batch is not None and mark != self._last_batch:
                self._other_came = True
            self._last_batch = mark

    @property
    def _names(self) -> tuple[str, ...]:
        """The names of the parameters that objectives see, in order."""
        if moves_by_group(self.search):
            return self.target.moving(self.action)
        return self._movable.names()

    @property
    def moving(self) -> list[nn.Parameter]:
        """The parameters that teleports move, in the order in which objectives see them."""
        self._movable.update()
        return self.target.parameters(self._names)

    def orbit(self, x: Any = None, y: Any = None) -> Orbit:
        """Return the orbit on a batch: the points that the parameters can be moved to.

        Args:
            x: the batch, samples in rows; a batch of tasks needs none.
            y: the second argument of the loss function, for this batch.
        """
        self._movable.update()
        batch = _batch_of(x, y)
        if self.target.needs_batch:
            given(batch)
        return self._orbit(batch, replicas_of(self.model))

    def _orbit(self, batch: Batch | None, replicas: Replicas) -> Orbit:
        if not moves_by_group(self.search):
            if not self._may_move():
                raise UserError(
                    "expected parameters that may be moved, got none: unfreeze some, and give them "
                    "to the base"
                )
            return Orbit(self._names, ())
        x = None if batch is None else batch.x
        acting = self._acting(x, replicas)
        if x is not None and any(action.uses_inputs for _, action in acting):
            x = replicas.rows(x)  # then each process moves by the same features
        return self.target.orbit(self._names, acting, x)

    def _acting(self, x: Any, replicas: Replicas) -> tuple[ActingSite, ...]:
        samples, other = None, self._other_came
        if x is not None and self.target.needs_batch:
            samples = int(replicas.sum(torch.tensor([self.target.samples(x)])))
            if self._watches:
                other = bool(replicas.largest(torch.tensor([float(other)])))
        acting = self.target.acting(self.action, samples, Returns.NO if other else Returns.UNKNOWN)
        needs_inputs = self.target.needs_batch and any(a.uses_inputs for _, a in acting)
        if acting and not (needs_inputs and x is None):
            return acting
        if not self._may_move():
            raise UserError(
                f"expected a site that may be moved, got none ({self.target.sites.why()}): "
                f"unfreeze its layers, and give them to the base"
            )
        if x is None:
            raise UserError(
                "expected a group that is exact for all data for a closure alone, got one that "
                "acts on a batch: give step(closure, batch=(x, y)), or action='rescaling'"
            )
        if other:
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
        counts = {"made": self.made, "undone": self.undone, "skipped": self.skipped}
        lines = [f"Teleports {name}: {count}" for name, count in counts.items()]
        return "\n".join([self._movable.update().report(), *lines])

    @property
    def _needs_loss(self) -> bool:
        """Whether the search evaluates the loss."""
        return bool(getattr(self.search, "needs_loss", True))

    def _loss(self, names: Sequence[str], batch: Batch | None, replicas: Replicas) -> LossFunction:
        """The loss on the batch, of all processes together."""
        if not self._needs_loss:
            return _no_loss
        loss = self.target.loss(names, self.loss_fn, batch)
        return replicas.loss(loss)

    def _find(
        self,
        batch: Batch | None,
        judges: Sequence[OutputChange] = (),
        closure: Closure | None = None,
    ) -> _Found:
        """Search on a batch, or by a closure that leads; nothing is moved.

        The move is reverted if its invariance error, or a judge's, is too large.
        """
        names = self._names
        parameters = self.target.parameters(names)
        replicas = replicas_of(self.model)
        if replicas and not self.target.needs_batch:
            raise UserError(
                "expected one process for tasks with their own data, got several under "
                "DistributedDataParallel: give each process tasks of its own, without it"
            )
        check_memory(names, parameters)
        if self.buffers == "transport":
            check_transport(self.base, parameters)
        # What is kept must not alias the weights that are about to change.
        before = [parameter.detach().clone() for parameter in parameters]
        led = ClosureLoss(closure, parameters, self._everything(), replicas) if closure else None
        if self.target.needs_batch and led is None and self._needs_loss:
            given(batch)
        orbit = self._orbit(batch, replicas)
        loss = led or self._loss(names, batch, replicas)
        with second_derivatives(self.target.model):
            result = _of_the_first(replicas, self.search(orbit, before, loss))
        if led is not None:
            outputs: Outputs = ClosureOutputs(led, before, result.parameters)
        elif batch is None and self.target.needs_batch:
            outputs = SiteProducts(orbit)
        else:
            outputs = self.target.outputs(names, None if batch is None else batch.x)
        move = Teleportation(outputs, before, result.parameters, result.rejected)
        if self.target.needs_batch:
            confirmed = getattr(result, "confirmed", False) and self.max_defect >= AGREEMENT
            known = confirmed or not moves_by_group(self.search)
            known = known or (batch is None and led is None)  # exact for all data: the sites say so
            errors = [] if known else [move.invariance_error()]
            errors += [judge.invariance_error(move.after) for judge in judges]
            errors.append(torch.zeros((), device=before[0].device))
            worst = replicas.largest(torch.stack([error.double() for error in errors]).amax())
            if not worst <= self.max_defect:
                move = move.revert(torch.tensor(True))
        return _Found(move, Way(names, parameters, before, orbit, result.elements), result)

    def _make(self, found: _Found) -> None:
        """Move the weights as found, and treat the buffers; or count that it was reverted."""
        move, way = found.move, found.way
        self.teleportation = move
        if move.reverted is not None:
            self.undone += 1
            return
        if move.rejected.all():
            return
        if self.buffers == "transport":  # before the weights move, as an action may refuse
            transport(self.base, way.parameters, way.orbit, way.steps)
        held = masters(with_inner(self.base), way.parameters)
        with torch.no_grad():
            for parameter, value in zip(way.parameters, found.result.parameters, strict=True):
                if not torch.equal(parameter, value):
                    parameter.copy_(value)
        move_masters(held, way.parameters, way.orbit, way.steps)
        if self.buffers == "reset":
            for new in self._new:
                reset(new.base, way.parameters, new)
        self.made += 1


def _no_loss(values: Sequence[Tensor]) -> Tensor:
    """Raise an error: a search that needs no loss evaluated it."""
    raise UserError("expected a search that evaluates no loss, got one that does: mend needs_loss")


_COUNTS = ("steps", "made", "undone", "skipped")
_KEPT = {name: name for name in _COUNTS} | {
    "last_batch": "_last_batch",
    "other_came": "_other_came",
}


def _batch_of(x: Any, y: Any) -> Batch | None:
    """Return a batch, or None if no x is given; y may be missing where the model has its loss."""
    return None if x is None else Batch(x, y)


def _check_base(base: object) -> None:
    if not isinstance(base, torch.optim.Optimizer):
        raise UserError(
            f"expected an optimizer of torch as base, got {shown(base)}: build one, such as "
            f"torch.optim.Adam(model.parameters())"
        )
    if any(isinstance(own, TeleportingOptimizer) for own in with_inner(base)):
        raise UserError(
            "expected a base that does not teleport, got a TeleportingOptimizer: wrap its base"
        )


def _of_the_first(replicas: Replicas, result: SearchResult) -> SearchResult:
    """The result of the first process, so that a search may draw random numbers."""
    if not replicas:
        return result

    def first(tensors: Sequence[Tensor]) -> list[Tensor]:
        return [replicas.gather(tensor)[0] for tensor in tensors]

    return replace(
        result,
        parameters=first(result.parameters),
        rejected=replicas.gather(result.rejected)[0],
        elements=[
            [own.with_values(replicas.gather(own.values)[0]) for own in elements]
            for elements in result.elements
        ],
    )


def _has_gradient(parameter: nn.Parameter) -> bool:
    gradient = parameter.grad
    return gradient is not None and (gradient.layout != torch.strided or bool(gradient.any()))
