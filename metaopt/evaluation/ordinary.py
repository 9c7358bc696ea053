"""Ordinary optimizers of a network, by name: what a learned one is compared with on tasks.

Each is built from a module, a rate, the number of steps that will be made, and a weight decay. A
cosine is part of the optimizer: ``step`` sets the rates first, so no scheduler stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn

from metaopt.checks import check_whole
from metaopt.errors import UserError
from metaopt.extras import extra
from metaopt.registry import Registry
from metaopt.roles import HIDDEN, roles_of

OrdinaryBuild = Callable[[nn.Module, float, int, float], torch.optim.Optimizer]
"""From a module, a rate, the number of steps and a weight decay to a fresh optimizer."""

WARM_UP = 0.05
"""The part of all steps in which a cosine rises to its rate."""


def warm_cosine(total_steps: int) -> Callable[[int], float]:
    """Return the factor of the rate at each step: a line up, then half a cosine down to 0.

    Args:
        total_steps: steps of the run; later ones have the factor 0.
    """
    check_whole("total_steps", total_steps, 1)
    rise = max(1, round(WARM_UP * total_steps))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        gone = min(1.0, (step + 1 - rise) / max(1, total_steps - rise))
        return 0.5 * (1 + math.cos(math.pi * gone))

    return factor


class ScheduledOptimizer(torch.optim.Optimizer):
    """Steps parameters with one or several optimizers under one schedule.

    Its groups and its state are those of the parts. The number of steps made is kept in each group,
    so ``state_dict`` holds all that it needs to go on.

    Args:
        parts: fresh optimizers of different parameters.
        schedule: the factor of each group's own rate at a step, counted from 0; None for 1.
    """

    def __init__(
        self,
        parts: Sequence[torch.optim.Optimizer],
        schedule: Callable[[int], float] | None = None,
    ) -> None:
        self.parts, self.schedule = list(parts), schedule
        groups = [group for part in parts for group in part.param_groups]
        super().__init__(groups, {})
        for group in self.param_groups:
            group["initial_lr"], group["steps_made"] = group["lr"], 0
        self._share()

    def _share(self) -> None:
        """Give each part its groups and the one state."""
        start = 0
        for part in self.parts:
            stop = start + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[start:stop], self.state
            start = stop

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step with the rate of this step.

        Args:
            closure: computes the loss and its gradients anew, before the step.

        Returns:
            What the closure returned; None without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            factor = 1.0 if self.schedule is None else self.schedule(group["steps_made"])
            group["lr"] = factor * group["initial_lr"]
            group["steps_made"] += 1
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state.

        Args:
            state_dict: what ``state_dict()`` returned.
        """
        super().load_state_dict(state_dict)
        self._share()


@dataclass(frozen=True)
class Ordinary:
    """An ordinary optimizer by name.

    Attributes:
        name: its name.
        build: builds it.
        rate: its usual rate, where none is given.
    """

    name: str
    build: OrdinaryBuild
    rate: float

    def optimizer(
        self,
        model: nn.Module,
        total_steps: int,
        rate: float | None = None,
        weight_decay: float = 0.0,
    ) -> torch.optim.Optimizer:
        """Return a fresh optimizer of the trainable parameters of a module.

        Args:
            model: the module.
            total_steps: how many steps will be made, which a cosine needs.
            rate: above 0; by default the usual one.
            weight_decay: 0 or more; decoupled where the optimizer decouples it.

        Raises:
            UserError: for a rate or a weight decay that is no such number.
            MissingExtra: where its package is not installed.
        """
        rate = self.rate if rate is None else rate
        if not 0 < rate < math.inf or not 0 <= weight_decay < math.inf:
            raise UserError(
                f"expected a rate above 0 and a weight decay of 0 or more of {self.name}, got "
                f"{rate!r} and {weight_decay!r}: as in {self.name}@{self.rate:g}"
            )
        return self.build(model, rate, total_steps, weight_decay)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a module that require a gradient.

    Args:
        model: the module.

    Raises:
        UserError: if there are none.
    """
    found = [p for p in model.parameters() if p.requires_grad]
    if not found:
        raise UserError("expected parameters that require a gradient, got none: unfreeze some")
    return found


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Return the trainable matrices between the first and the last layer, which Muon steps.

    Not among them are embeddings, the output layer (:func:`metaopt.roles.roles_of`), and the
    weights of convolutions: ``torch.optim.Muon`` takes matrices alone.

    Args:
        model: the module.
    """
    roles = roles_of(model)
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and roles[name].kind == HIDDEN
        if parameter.dim() == 2 and min(parameter.shape) > 1
    ]


def _adamw(
    model: nn.Module, rate: float, total_steps: int, weight_decay: float
) -> torch.optim.Optimizer:
    return torch.optim.AdamW(trainable(model), rate, weight_decay=weight_decay)


def _adamw_cosine(
    model: nn.Module, rate: float, total_steps: int, weight_decay: float
) -> torch.optim.Optimizer:
    return ScheduledOptimizer(
        [_adamw(model, rate, total_steps, weight_decay)], warm_cosine(total_steps)
    )


def _sgd_cosine(
    model: nn.Module, rate: float, total_steps: int, weight_decay: float
) -> torch.optim.Optimizer:
    sgd = torch.optim.SGD(trainable(model), rate, momentum=0.9, weight_decay=weight_decay)
    return ScheduledOptimizer([sgd], warm_cosine(total_steps))


def _muon(
    model: nn.Module, rate: float, total_steps: int, weight_decay: float
) -> torch.optim.Optimizer:
    hidden = hidden_matrices(model)
    own = {id(p) for p in hidden}
    rest = [p for p in trainable(model) if id(p) not in own]
    parts: list[torch.optim.Optimizer] = []
    if hidden:
        # "match_rms_adamw" makes its steps as long as Adam's, so that one rate serves both.
        parts.append(
            torch.optim.Muon(
                hidden, rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    if rest:
        parts.append(torch.optim.AdamW(rest, rate, weight_decay=weight_decay))
    return ScheduledOptimizer(parts, warm_cosine(total_steps))


def _schedule_free(
    model: nn.Module, rate: float, total_steps: int, weight_decay: float
) -> torch.optim.Optimizer:
    with extra("studies"):
        kind = import_module("pytorch_optimizer").ScheduleFreeAdamW
    built: torch.optim.Optimizer = kind(
        trainable(model),
        lr=rate,
        weight_decay=weight_decay,
        warmup_steps=max(1, round(WARM_UP * total_steps)),
    )
    return built


ORDINARY: Registry[Ordinary] = Registry("method", lambda entry: isinstance(entry, Ordinary))
"""The ordinary optimizers of tasks by name.

"adamw" has a constant rate. "adamw_cosine", "sgd_cosine" (momentum 0.9) and "muon" have a short
warm-up and half a cosine. "muon" steps hidden matrices, and AdamW beside it all else, at one rate.
"schedule_free" is schedule-free AdamW with the same warm-up, of the extra ``studies``: call its
``eval()`` before an evaluation and its ``train()`` after it.
"""

ORDINARY.update(
    (ordinary.name, ordinary)
    for ordinary in (
        Ordinary("adamw", _adamw, 1e-3),
        Ordinary("adamw_cosine", _adamw_cosine, 3e-3),
        Ordinary("sgd_cosine", _sgd_cosine, 0.1),
        Ordinary("muon", _muon, 3e-3),
        Ordinary("schedule_free", _schedule_free, 3e-3),
    )
)
