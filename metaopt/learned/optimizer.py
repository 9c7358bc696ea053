"""A trained meta-optimizer as an ordinary ``torch.optim.Optimizer``."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metaopt.errors import UserError
from metaopt.learned.checkpoint import load_meta_optimizer
from metaopt.learned.forward_record import ForwardRecord, ForwardRecorder
from metaopt.learned.meta_optimizer import MetaOptimizer, State, StepInput
from metaopt.learned.module_stepper import NONE, RESCALING, ModuleStepper
from metaopt.learned.stepper import GradientStepper, Stepper, TaskStepper
from metaopt.symmetry import Teleportation
from metaopt.symmetry.auto import AUTO
from metaopt.target import ModuleTarget, Target, TaskTarget, check_loss_fn, target_of

BATCH_DEPENDENT = ("curvature", "batch", "trust")  # parts of a state


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
        lr: the factor of f_t, 0 or more, for learning-rate schedulers; 1 is as trained.
        loss_fn: the loss of a network, if it is ``torch.nn.MSELoss`` or another whose curvature is
            known (:func:`metaopt.learned.loss_curvature.known_curvature`). Without it the curvature
            is measured where the same batch comes twice in a row, and steps on changing batches
            are short.
        action: for a network, "auto", "none", "rescaling" or the action that m2 was trained for.
            "auto" takes what is exact (:func:`metaopt.symmetry.auto.choose_actions`).
        sites: for a network, names of (incoming, outgoing) layers between which a group may act,
            instead of all that are found.

    Attributes:
        teleportation: the move of the last step, or None.
        skipped: how many steps of a network were not taken, because a weight would not be finite.

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

    _step_supports_amp_scaling = True  # GradScaler then says its scale, which output gradients need

    def __init__(
        self,
        model: nn.Module | Iterable[Any],
        optimizer: str | Path | MetaOptimizer,
        lr: float = 1.0,
        loss_fn: object = None,
        action: str = AUTO,
        sites: Sequence[tuple[str, str]] | None = None,
    ) -> None:
        if not 0 <= lr < math.inf:
            raise UserError(f"expected an lr of 0 or more, got {lr}: 1 is as trained")
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
        self.model: nn.Module | None = None
        if target is not None:
            self.steppers.append(self._stepper(target, loss_fn, action))
            self.model = target.model if isinstance(self.steppers[0], ModuleStepper) else None
        self.teleportation: Teleportation | None = None
        self.recorder = ForwardRecorder(self.model)
        own_parameters = model.parameters() if isinstance(model, nn.Module) else model
        super().__init__(own_parameters, {"lr": lr})
        self._follow(self.steppers[0].parameters[0].device)

    def _stepper(self, target: Target, loss_fn: object, action: str) -> Stepper:
        if isinstance(target, TaskTarget):
            return TaskStepper(target)
        layers = self.meta.element is not None or self.meta.update.sees_layers
        if isinstance(target, ModuleTarget) and layers:
            return ModuleStepper(target, self.meta, loss_fn, action)
        check_loss_fn(loss_fn)
        choices = (AUTO, RESCALING, NONE)
        if action not in choices:
            raise UserError(f"expected an action of {', '.join(choices)}, got {action!r}: name one")
        return GradientStepper(target.parameters(target.trainable()), self.meta)

    @property
    def _kept(self) -> dict[Any, Any]:
        """The state by key; keys that are no parameters pass through ``state_dict`` too."""
        return self.state

    @property
    def learned_states(self) -> list[State]:
        """The state of the stepper of each group of parameters, which ``state_dict`` holds."""
        states: list[State] = self._kept.setdefault("learned", [])
        states.extend(stepper.init_state(self.meta) for stepper in self.steppers[len(states) :])
        return states

    @property
    def skipped(self) -> int:
        """How many steps were not taken, because a weight would not be finite."""
        return int(self._kept.get("skipped", 0))

    @skipped.setter
    def skipped(self, count: int) -> None:
        self._kept["skipped"] = count

    @property
    def learned_state(self) -> State:
        """The state of the stepper of the first group of parameters."""
        return self.learned_states[0]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step from the gradients that ``backward`` left.

        Args:
            closure: computes the loss and its gradients anew, before the step.

        Returns:
            What the closure returned; None without one.

        Raises:
            UserError: if a parameter has a gradient that was frozen when the optimizer was built,
                or if no forward pass was seen of a chain of Linear layers.
        """
        loss = None
        self.teleportation = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        seen = self.recorder.take()
        if any(p.grad is not None for group in self.param_groups for p in group["params"]):
            scale, skip, seen = self._amp(seen)
            if not skip:
                self._step(seen, scale)
        return loss

    def _step(self, seen: ForwardRecord | None, scale: float) -> None:
        following = []
        states = self.learned_states
        self._check_all_known()
        device = self.steppers[0].parameters[0].device
        if next(self.meta.parameters()).device != device:
            self._follow(device)
        for index, (stepper, group) in enumerate(
            zip(self.steppers, self.param_groups, strict=True)
        ):
            gradients = [
                torch.zeros_like(p) if p.grad is None else p.grad / scale if scale != 1 else p.grad
                for p in stepper.parameters
            ]
            rate = float(group["lr"])
            absent = frozenset(i for i, p in enumerate(stepper.parameters) if p.grad is None)
            now = StepInput(stepper.parameters, gradients, seen, rate, absent=absent)
            advanced = stepper.advance(self.meta, now, states[index])
            if stepper.skips_not_finite and not _finite(advanced.parameters):
                self.skipped = self.skipped + 1
                following.append(states[index])  # as if it had not been asked for
                continue
            for parameter, value in zip(stepper.parameters, advanced.parameters, strict=True):
                parameter.copy_(value)
            following.append(advanced.state)
            self.teleportation = self.teleportation or advanced.teleportation
        self._kept["learned"] = following

    def _check_all_known(self) -> None:
        """Refuse a gradient of a parameter that was frozen when the optimizer was built."""
        if self.model is None:
            return
        known = {id(p) for stepper in self.steppers for p in stepper.parameters}
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None and id(parameter) not in known:
                raise UserError(
                    f"expected parameters that were trainable when the optimizer was built, got a "
                    f"gradient of {name}, which was frozen: build the optimizer anew"
                )

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

        Args:
            state_dict: what :meth:`state_dict` gave; it is not changed.

        Raises:
            UserError: if it is a state of another optimizer, or of a model of another size.
        """
        if any("weight_decay" in group for group in state_dict.get("param_groups", ())):
            raise UserError(
                "expected a state of a LearnedOptimizer, got one of an optimizer with "
                "weight_decay, which it does not have: start from a fresh state"
            )
        expected = [_shapes(stepper.init_state(self.meta)) for stepper in self.steppers]
        loaded = state_dict.get("state", {}).get("learned")
        if loaded is not None and [_shapes(state) for state in loaded] != expected:
            raise UserError(
                f"expected LSTM states of shapes {expected}, got "
                f"{[_shapes(state) for state in loaded]}: load a state of the same optimizer on a "
                f"model of the same size"
            )
        super().load_state_dict(state_dict)
        if loaded is not None:
            self._kept["learned"] = copy.deepcopy(loaded)
            self._follow(self.steppers[0].parameters[0].device)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters that are stepped by m1 (the update network), without teleportation.

        Args:
            param_group: "params" and options, as torch's optimizers take them.

        Raises:
            UserError: if m1 needs a chain of layers; nothing is added then.
        """
        super().add_param_group(param_group)
        if len(self.param_groups) > len(self.steppers):
            try:
                self.steppers.append(GradientStepper(self.param_groups[-1]["params"], self.meta))
            except UserError:
                self.param_groups.pop()
                raise

    def __getstate__(self) -> dict[str, Any]:
        """Return what torch keeps, and what it would lose."""
        own = ("meta", "steppers", "model", "teleportation")
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.recorder = ForwardRecorder(self.model)

    def _follow(self, device: torch.device) -> None:
        """Take m1, m2 and the states to the device of the parameters."""
        own = next(self.meta.parameters()).device
        if own != device:
            self.meta = copy.deepcopy(self.meta).to(device)
        for state in self._kept.get("learned", []):
            for name, tensors in state.items():
                if name not in BATCH_DEPENDENT:
                    state[name] = [tensor.to(device) for tensor in tensors]


def _finite(tensors: Sequence[Tensor]) -> bool:
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


def _shapes(state: State) -> dict[str, list[tuple[int, ...]]]:
    """The shapes of all parts of a state that do not depend on the batch."""
    return {
        name: [tuple(tensor.shape) for tensor in tensors]
        for name, tensors in state.items()
        if name not in BATCH_DEPENDENT
    }
