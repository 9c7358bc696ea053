"""A trained meta-optimizer as an ordinary ``torch.optim.Optimizer``."""

from __future__ import annotations

import copy
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metaopt.checks import check_whole
from metaopt.errors import UserError, unknown
from metaopt.learned.checkpoint import load_meta_optimizer
from metaopt.learned.forward_record import ForwardRecord, ForwardRecorder
from metaopt.learned.meta_optimizer import MetaOptimizer, State, StepInput
from metaopt.learned.module_stepper import NONE, OF_THE_LOSS, RESCALING, ModuleStepper
from metaopt.learned.state import KeptState, PerParameter
from metaopt.learned.stepper import GradientStepper, Stepper, TaskStepper, as_real, share_depth
from metaopt.roles import roles_of
from metaopt.symmetry import Teleportation
from metaopt.symmetry.auto import AUTO
from metaopt.target import (
    ModuleTarget,
    Target,
    TaskTarget,
    check_loss_fn,
    check_parameters,
    target_of,
)
from metaopt.wrappers import unwrapped

LONGEST_RUN = 10**12
DEFAULTS = {"lr": 1.0, "weight_decay": 0.0, "maximize": False, "total_steps": 0, "skipped": 0}
OF_OTHERS = ("betas", "momentum", "dampening", "eps", "alpha")  # options of torch's optimizers


class LearnedOptimizer(torch.optim.Optimizer):
    r"""Steps a network with a trained meta-optimizer: :math:`w \leftarrow g_t \cdot (w + f_t)`.

    It is an ordinary ``torch.optim.Optimizer``. m1 (the update network) proposes f_t, and m2 (the
    group-element network) proposes g_t, which moves the weights and keeps what the model computes.

    Args:
        model: any ``nn.Module`` of one input, whose forward passes are watched; or a batch of tasks
            of ``metaopt.tasks``; or parameters alone, in any form that torch's optimizers take,
            which are stepped without teleportation.
        optimizer: the name of a shipped optimizer, the path of a checkpoint, or a
            :class:`MetaOptimizer`.
        lr: the factor of f_t, 0 or more, for learning-rate schedulers; 1 is as trained. Below 1 it
            is a factor of the elements T_t of m2 too, so that 0 moves nothing.
        loss_fn: the loss of a network, if it is ``torch.nn.MSELoss`` or another whose curvature is
            known (:func:`metaopt.learned.loss_curvature.known_curvature`). Without it the curvature
            is measured where the same batch comes twice in a row, and steps on changing batches
            are short.
        action: for a network, "auto", "none", "rescaling" or the action that m2 was trained for.
            "auto" takes what is exact (:func:`metaopt.symmetry.auto.choose_actions`).
        sites: for a network, names of (incoming, outgoing) layers between which a group may act,
            instead of all that are found.
        weight_decay: 0 or more, an option of a group too. It is decoupled: a step adds
            ``-lr * weight_decay * rho * w`` to a tensor w, with rho = ||f_t|| / ||w||. So 0.01
            draws the weights to 0 by 1 % of the length of each step, at any learned rate.
        maximize: whether to raise the loss; an option of a group too.
        total_steps: how many steps the run is going to have, for rules that anneal their steps
            towards its end; 0 if it is not known.

    Attributes:
        teleportation: the move of the last step, or None.
        skipped: how many steps were not taken, because a weight would not be finite. Of a batch of
            tasks each task counts by itself, and the others are stepped.

    Raises:
        UserError: for an unknown optimizer, or options that do not fit the model.

    Example:
        >>> import torch, metaopt
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 8), torch.nn.LeakyReLU(0.1), torch.nn.Linear(8, 2)
        ... )
        >>> optimizer = metaopt.LearnedOptimizer(model, "lstm_update_tele")
        >>> x, y = torch.rand(16, 4), torch.rand(16, 2)
        >>> for _ in range(10):
        ...     optimizer.zero_grad()
        ...     torch.nn.functional.mse_loss(model(x), y).backward()
        ...     optimizer.step()
    """

    def __init__(
        self,
        model: nn.Module | Iterable[Any],
        optimizer: str | Path | MetaOptimizer,
        lr: float | Tensor = 1.0,
        loss_fn: object = None,
        action: str = AUTO,
        sites: Sequence[tuple[str, str]] | None = None,
        *,
        weight_decay: float = 0.0,
        maximize: bool = False,
        total_steps: int = 0,
    ) -> None:
        check_option("lr", lr)
        check_whole("total_steps", total_steps, 0, LONGEST_RUN)
        check_option("weight_decay", weight_decay)
        target = target_of(model, sites) if isinstance(model, nn.Module) else None
        network = target is not None and target.needs_batch
        if not network and (loss_fn is not None or action != AUTO or sites is not None):
            raise UserError(
                f"expected loss_fn, action and sites of an nn.Module alone, got them for "
                f"{type(model).__name__}: leave them out"
            )
        self.meta = (
            optimizer if isinstance(optimizer, MetaOptimizer) else load_meta_optimizer(optimizer)
        )
        self.steppers: list[Stepper] = []
        self._passing: list[dict[str, list[Tensor]] | None] = [None]  # parts that are not kept
        self.model: nn.Module | None = None
        if target is not None and isinstance(model, nn.Module):
            self.steppers.append(self._stepper(target, loss_fn, action))
            watched = isinstance(self.steppers[0], ModuleStepper) or self.meta.update.sees_losses
            self.model = model if watched else None
        self.teleportation: Teleportation | None = None
        self.recorder = ForwardRecorder(self.model)
        own_parameters = model.parameters() if isinstance(model, nn.Module) else model
        own = {"lr": lr, "weight_decay": weight_decay, "maximize": maximize}
        own["total_steps"] = total_steps
        super().__init__(own_parameters, DEFAULTS | own)
        self._per_parameter = PerParameter(self.state)
        self._places: dict[int, tuple[list[tuple[int, torch.Size]], KeptState]] = {}
        self._made: int | None = None  # steps of the run; None where the state says it
        self._trainable: list[bool] = []  # of all parameters, when the depth was shared
        self._ended: set[int] = set()  # groups of which it was said that total_steps are made
        trainable = [p for p in self._all() if p.requires_grad]
        if not trainable:
            raise UserError("expected parameters that require a gradient, got none: unfreeze some")
        self._follow(trainable[0].device)
        self._share_depth()

    def _stepper(self, target: Target, loss_fn: object, action: str) -> Stepper:
        if isinstance(target, TaskTarget):
            return TaskStepper(target)
        layers = self.meta.element is not None or self.meta.update.sees_layers
        if isinstance(target, ModuleTarget) and layers:
            return ModuleStepper(target, self.meta, loss_fn, action)
        check_loss_fn(loss_fn)
        choices = (AUTO, RESCALING, NONE)
        if action not in choices:
            raise UserError(unknown("an action", action, choices))
        target.trainable()  # refuses a model without any
        parameters = dict(target.model.named_parameters())
        roles = roles_of(target.model)
        return GradientStepper(
            list(parameters.values()), self.meta, [roles[name] for name in parameters]
        )

    @property
    def learned_states(self) -> list[State]:
        """The state of the stepper of each group of parameters, as the rules take it."""
        return [
            self._state_of(index, stepper.stateful()) for index, stepper in enumerate(self.steppers)
        ]

    @property
    def learned_state(self) -> State:
        """The state of the stepper of the first group of parameters."""
        return self.learned_states[0]

    @property
    def skipped(self) -> int:
        """How many steps were not taken, because a weight would not be finite."""
        return sum(int(group.get("skipped", 0)) for group in self.param_groups)

    def _kept(self, index: int, parameters: Sequence[nn.Parameter]) -> KeptState:
        """Where the state of a stepper is kept, made anew where it steps other parameters."""
        these = [(id(parameter), parameter.shape) for parameter in parameters]
        known = self._places.get(index)
        if known is None or known[0] != these:
            known = self._places[index] = these, self.steppers[index].kept(self.meta, parameters)
        return known[1]

    def _state_of(self, index: int, parameters: Sequence[nn.Parameter]) -> State:
        stepper = self.steppers[index]
        start = partial(stepper.init_state, self.meta, parameters)
        kept = self._per_parameter.read(self._kept(index, parameters), start)
        passing = self._passing[index]
        if passing is None:
            passing = {part: tensors for part, tensors in start().items() if part not in kept}
            self._passing[index] = passing
        return passing | kept

    def _keep(self, index: int, parameters: Sequence[nn.Parameter], state: State) -> None:
        kept = self._kept(index, parameters)
        self._per_parameter.write(kept, state)
        self._passing[index] = {part: state[part] for part in state.keys() - kept.keys()}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step from the gradients that ``backward`` left.

        Args:
            closure: computes the loss and its gradients anew, before the step.

        Returns:
            What the closure returned; None without one.

        Raises:
            UserError: for a gradient that is sparse; for one of a parameter of a chain of layers
                that was frozen when the optimizer was built; or if no forward pass was seen of such
                a chain.
        """
        loss = None
        self.teleportation = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        seen = self.recorder.take()
        if any(p.grad is not None for p in self._all()):
            scale, skip, seen = self._amp(seen)
            if not skip:
                # Rules may run the model again, and compute in a precision of their own.
                with self.recorder.paused(), _without_autocast(self._all()[0].device.type):
                    self._step(seen, scale)
        return loss

    def _step(self, seen: ForwardRecord | None, scale: float) -> None:
        self._check_gradients()
        self._share_depth()
        made = self._steps_made()
        for index, group in enumerate(self.param_groups):
            stepper = self.steppers[index]
            parameters = stepper.active()
            if not parameters:
                continue
            self._follow(parameters[0].device)
            now = self._input(stepper, parameters, group, seen, scale)._replace(made=made)
            state = self._state_of(index, parameters)
            if stepper.steps_in_place(self.meta):
                self._step_in_place(index, parameters, now, state)
                continue
            advanced, skipped = stepper.finite_step(self.meta, now, state)
            group["skipped"] = group["skipped"] + skipped
            if advanced is None:
                continue  # as if it had not been asked for
            if now.rate:  # at 0, adding 0 could still turn -0.0 into 0.0
                for parameter, value in zip(parameters, advanced.parameters, strict=True):
                    as_real(parameter).copy_(value)
            self._keep(index, parameters, advanced.state)
            self._count(parameters, made)
            self.teleportation = self.teleportation or advanced.teleportation

    def _step_in_place(
        self, index: int, parameters: Sequence[nn.Parameter], now: StepInput, state: State
    ) -> None:
        following = self.steppers[index].step_(self.meta, now, state)
        if following is None:
            self.param_groups[index]["skipped"] += 1
            return
        self._keep(index, parameters, following)
        made = now.made or 0
        self._count(parameters, made)
        total = self.param_groups[index]["total_steps"]
        if total and made >= total and index not in self._ended:
            self._ended.add(index)
            warnings.warn(
                f"total_steps={total} are made, after which steps are 0: build the optimizer with "
                "the number that you will make, or with 0 where you do not know it",
                stacklevel=4,
            )

    def _steps_made(self) -> int:
        """How many steps the run has, which are those of the parameter that has most."""
        if self._made is None:
            entries = [self.state.get(parameter, {}) for parameter in self._all()]
            self._made = max((int(own["step"]) for own in entries if "step" in own), default=0)
        return self._made

    def _share_depth(self) -> None:
        """Tell the steppers how deep the network is, where others are trainable than before."""
        trainable = [parameter.requires_grad for parameter in self._all()]
        if trainable != self._trainable:
            share_depth(self.steppers)
            self._trainable = trainable

    def _all(self) -> list[nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _count(self, parameters: Sequence[nn.Parameter], made: int) -> None:
        """Count a step of each parameter, for which tools ask, and one of the run."""
        self._made = made + 1
        for parameter in parameters:
            self.state[parameter].setdefault("step", _count(0))
        torch._foreach_add_([self.state[parameter]["step"] for parameter in parameters], 1)

    def _input(
        self,
        stepper: Stepper,
        parameters: Sequence[nn.Parameter],
        group: dict[str, Any],
        seen: ForwardRecord | None,
        scale: float,
    ) -> StepInput:
        """What the step of a group is made from; parameters that are frozen now stay."""
        divisor = -scale if group["maximize"] else scale
        still = [p.grad is None or not p.requires_grad for p in parameters]
        gradients = [
            torch.zeros_like(as_real(p))
            if p.grad is None
            else as_real(p.grad)
            if divisor == 1
            else _divided(as_real(p.grad), divisor)
            for p in parameters
        ]
        if group["maximize"] and seen is not None and seen.output_gradient is not None:
            seen = seen._replace(output_gradient=-seen.output_gradient)
        return StepInput(
            [as_real(p) for p in parameters],
            gradients,
            seen,
            float(group["lr"]),
            absent=frozenset(index for index, stays in enumerate(still) if stays),
            frozen=stepper.frozen(),
            weight_decay=float(group["weight_decay"]),
            losses=stepper.losses(seen),
            total_steps=int(group["total_steps"]),
        )

    def _check_options(self, groups: Iterable[dict[str, Any]]) -> None:
        """Refuse options of another optimizer."""
        for group in groups:
            other = [name for name in OF_OTHERS if name in group]
            if other and "skipped" not in group:
                raise UserError(
                    f"expected a state of a LearnedOptimizer, got one of an optimizer with "
                    f"{', '.join(other)}: start from a fresh state"
                )

    def _check_gradients(self) -> None:
        """Refuse gradients that cannot be stepped on."""
        names = {} if self.model is None else dict(unwrapped(self.model).named_parameters())
        known = {id(p) for stepper in self.steppers for p in stepper.parameters}
        for name, parameter in names.items():
            if parameter.grad is not None and id(parameter) not in known:
                raise UserError(
                    f"expected parameters that were trainable when the optimizer was built, got a "
                    f"gradient of {name}, which was frozen: build the optimizer anew"
                )
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.layout != torch.strided:
                    raise UserError(
                        f"expected dense gradients, got a sparse one of a parameter of shape "
                        f"{tuple(parameter.shape)}: build its layer with sparse=False"
                    )

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether GradScaler says its scale to ``step``, as output gradients need it.

        Lightning asks too, and clips no gradients of an optimizer that says so. It unscales before
        it clips, so that is no reason here, and GradScaler alone is told yes.
        """
        asking = sys._getframe(1).f_globals.get("__name__")
        return bool(asking == torch.amp.grad_scaler.__name__)

    def _amp(self, seen: ForwardRecord | None) -> tuple[float, bool, ForwardRecord | None]:
        """The scale of the gradients, whether to skip, and what was seen without the scale."""
        found: Tensor | None = getattr(self, "found_inf", None)
        if found is None:  # no GradScaler at work
            return 1.0, False, seen
        scale: Tensor | None = getattr(self, "grad_scale", None)
        if seen is not None and seen.output_gradient is not None:
            # Where the user has unscaled the gradients already, nobody says by how much.
            known = None if scale is None else seen.output_gradient / scale
            seen = seen._replace(output_gradient=known)
        return 1.0 if scale is None else float(scale), bool(found), seen

    def report(self) -> str:
        """Return where a group can act and where not, with reasons, and how often each acted."""
        lines = [stepper.report() for stepper in self.steppers]
        return "\n".join([*lines, f"Steps skipped, not finite: {self.skipped}"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of the same meta-optimizer on a model of the same size.

        Every entry keeps its own dtype.

        Args:
            state_dict: what :meth:`state_dict` gave; it is not changed.

        Raises:
            UserError: if it is a state of another optimizer, or of a model of another size.
        """
        saved: dict[str, Any] = {}

        def set_aside(_: Any, last: dict[str, Any]) -> dict[str, Any]:
            if missing := {"state", "param_groups"}.difference(last):
                raise UserError(
                    f"expected a state with 'state' and 'param_groups', got one without "
                    f"{' and '.join(sorted(missing))}: load what state_dict() gave"
                )
            self._check_options(last["param_groups"])
            saved.update(last)
            return {**last, "state": {}}

        def put_back(_: Any) -> None:
            self._restore(saved["state"], saved["param_groups"])

        hooks = (  # around those of the user
            self.register_load_state_dict_pre_hook(set_aside),
            self.register_load_state_dict_post_hook(put_back, prepend=True),
        )
        before = {"state": self.state, "param_groups": self.param_groups, "_passing": self._passing}
        try:
            super().load_state_dict(state_dict)
        except Exception:
            self.__setstate__(before)
            raise
        finally:
            for hook in hooks:
                hook.remove()

    def _restore(self, entries: dict[Any, Any], saved: list[dict[str, Any]]) -> None:
        """Take the entries of a loaded state as they are, which torch would cast."""
        ids = [key for group in saved for key in group["params"]]
        by_id = dict(zip(ids, self._all(), strict=True))
        entries = copy.deepcopy(entries)
        before = entries.pop("learned", None)  # earlier states were of groups
        entries.pop("skipped", None)
        for key, value in entries.items():
            self.state[by_id.get(key, key)] = value
            if key in by_id and "step" in value:  # a plain number, as torch's once were
                value["step"] = _count(value["step"])
        if before is not None:
            self._restore_joint(before)
        self._settle()
        self._made = None
        self._ended.clear()

    def _restore_joint(self, states: list[State]) -> None:
        if len(states) != len(self.steppers):
            raise UserError(
                f"expected the states of {len(self.steppers)} groups of parameters, got "
                f"{len(states)}: load a state of an optimizer with the same groups"
            )
        for index, (stepper, old) in enumerate(zip(self.steppers, states, strict=True)):
            parameters = stepper.stateful()
            start = stepper.init_state(self.meta, parameters)
            state = dict(start)
            for part, tensors in old.items():
                if part in start and len(tensors) >= len(start[part]):
                    state[part] = [
                        tensor.repeat(len(begun)) if tensor.shape == (1,) else tensor
                        for tensor, begun in zip(tensors, start[part], strict=False)
                    ]
                for tensor, begun in zip(state.get(part, ()), start.get(part, ()), strict=True):
                    if part not in OF_THE_LOSS and tensor.shape != begun.shape:
                        raise _other_state(part, tensor, begun)
            self._keep(index, parameters, state)

    def _settle(self) -> None:
        """Check the entries of all parameters, and take each to the device where it is used."""
        for stepper in self.steppers:
            parameters = stepper.stateful()
            if stepper.apart:
                parameters = [p for p in stepper.parameters if self.state.get(p)]
            kept = stepper.kept(self.meta, parameters) if parameters else {}
            start = stepper.init_state(self.meta, parameters) if parameters else {}
            known: dict[nn.Parameter, dict[str, Tensor]] = {}
            for part, places in kept.items():
                for place, begun in zip(places, start[part], strict=True):
                    for owner, fresh in zip(place.owners, place.divide(begun), strict=True):
                        known.setdefault(owner, {})[place.name] = fresh
            for parameter in parameters:
                entries, fresh_ones = self.state[parameter], known.get(parameter, {})
                for name, entry in entries.items():
                    if name == "step":
                        continue
                    own = fresh_ones.get(name)
                    if own is None or (name not in OF_THE_LOSS and entry.shape != own.shape):
                        raise _other_state(name, entry, own)
                    entries[name] = entry.to(own.device)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters that are stepped by m1 (the update network), without teleportation.

        Args:
            param_group: "params" and options, as torch's optimizers take them.

        Raises:
            UserError: for an option that cannot be used, or if m1 needs a chain of layers; nothing
                is added then.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            check_option("lr", group["lr"])
            check_option("weight_decay", group["weight_decay"])
            check_whole("total_steps", group["total_steps"], 0, LONGEST_RUN)
            if len(self.param_groups) > len(self.steppers):
                check_parameters(self._in_words())
                self.steppers.append(GradientStepper(group["params"], self.meta))
                self._passing.append(None)
        except BaseException:
            self.param_groups.pop()
            raise

    def _in_words(self) -> Iterator[tuple[str, Tensor]]:
        """All parameters, each with its place or its name."""
        for number, group in enumerate(self.param_groups):
            places = [f"parameter {i} of group {number}" for i in range(len(group["params"]))]
            yield from zip(group.get("param_names", places), group["params"], strict=True)

    def __getstate__(self) -> dict[str, Any]:
        """Return what torch keeps, and what it would lose."""
        own = ("meta", "steppers", "model", "teleportation", "_passing")
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # older states lack some
            for name, value in DEFAULTS.items():
                group.setdefault(name, value)
        self._per_parameter = PerParameter(self.state)
        self._places, self._made, self._trainable, self._ended = {}, None, [], set()
        if "_passing" not in state:  # a state was loaded
            self._passing = [None for _ in self.steppers]
        self.recorder = ForwardRecorder(self.model)

    def _follow(self, device: torch.device) -> None:
        """Take m1, m2 and the states to the device of the parameters."""
        own = next(self.meta.parameters(), None)
        if own is not None and own.device != device:
            self.meta = copy.deepcopy(self.meta).to(device)
            self._settle()


def check_option(name: str, value: object) -> None:
    """Check an option that is a finite number of 0 or more.

    Args:
        name: of the option.
        value: a number, or a tensor of one entry.

    Raises:
        UserError: for anything else.
    """
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if not isinstance(value, int | float) or not 0 <= value < math.inf:
        got = f"a tensor of {value.numel()} entries" if isinstance(value, Tensor) else repr(value)
        expected, advice = (
            ("an lr", "1 is as trained") if name == "lr" else (f"a {name}", "0 is none")
        )
        raise UserError(f"expected {expected} of 0 or more, got {got[:80]}: {advice}")


def _without_autocast(device_type: str) -> AbstractContextManager[Any]:
    available = torch.amp.is_autocast_available(device_type)  # not for "meta"
    if available and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def _divided(gradient: Tensor, divisor: float) -> Tensor:
    """A gradient over its scale, which float16 could not hold."""
    return (gradient.float() if gradient.dtype == torch.float16 else gradient) / divisor


def _count(steps: float | Tensor) -> Tensor:
    return torch.as_tensor(steps, dtype=torch.float32)


def _other_state(name: str, entry: Tensor, fresh: Tensor | None) -> UserError:
    expected = "no such entry" if fresh is None else f"the shape {tuple(fresh.shape)}"
    return UserError(
        f"expected a state of this optimizer on a model of this size, got {name!r} of shape "
        f"{tuple(entry.shape)} for {expected}: load a state of the same optimizer on a model of "
        f"the same size"
    )
