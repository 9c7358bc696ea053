"""The table of methods: every optimizer that can be evaluated, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metaopt.errors import UserError, shown, unknown
from metaopt.evaluation.ordinary import ORDINARY
from metaopt.evaluation.per_problem import PerProblemOptimizer
from metaopt.extras import DISTRIBUTION, installed
from metaopt.learned.checkpoint import (
    build_meta_optimizer,
    named_checkpoint,
    pretrained_names,
)
from metaopt.learned.meta_optimizer import MetaOptimizer, MetaOptimizerSpec
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.optim import LevenbergMarquardt, RestartingLBFGS, TeleportingOptimizer
from metaopt.registry import Registry, built
from metaopt.symmetry.search import GradientAscent
from metaopt.tasks import SingleTask, TaskBatch

Build = Callable[[Any, float], torch.optim.Optimizer]
"""Builds an optimizer of a batch of tasks (a ``TaskBatch``) with a learning rate."""


@dataclass(frozen=True)
class Method:
    """A named optimizer with its learning rate, ready to be evaluated.

    Attributes:
        name: the name that the user gave; it is written into the results.
        build: a function from (task batch, rate) to a fresh optimizer.
        rate: the learning rate (for Levenberg-Marquardt, the initial damping); None if there is
            none to choose.
        learned: whether it was meta-trained.
        facts: what its checkpoint says about it.
        on: what it steps: "all" tasks; "chains" of layers, such as section 5.2's, alone; or tasks
            of any "module", one by one, alone.
        module_rate: the rate on tasks of any module; None where one has to be chosen.
    """

    name: str
    build: Build
    rate: float | None = None
    learned: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    on: str = "all"
    module_rate: float | None = None

    def __post_init__(self) -> None:
        rate, known = self.rate, isinstance(self.rate, Real) and not isinstance(self.rate, bool)
        if rate is not None and not (known and 0 < rate < math.inf):
            raise UserError(
                f"expected a positive learning rate of the method {shown(self.name)}, got "
                f"{shown(rate)}: as in adam@0.1"
            )
        if not callable(self.build):
            raise UserError(
                f"expected a function that builds the method {shown(self.name)}, got "
                f"{shown(self.build)}: give one of (task batch, rate)"
            )

    def for_any_module(self) -> Method:
        """Return the same with its rate for tasks of any module.

        Raises:
            UserError: if it steps chains of layers alone, or if its only rate is section 5.2's.
        """
        if self.on == "chains":
            raise UserError(
                f"expected a method that can step any module, got {shown(self.name)}, which steps "
                "section 5.2's tasks alone: leave it out"
            )
        if self.rate is not None and self.module_rate is None:
            raise UserError(
                f"expected a learning rate for {shown(self.name)}, whose default is for section "
                f"5.2's tasks, got none: as in {self.name}@1e-3"
            )
        return replace(self, rate=self.module_rate)

    def for_chains(self) -> Method:
        """Return the same, checked to be of use on section 5.2's tasks.

        Raises:
            UserError: if it steps tasks of any module alone.
        """
        if self.on == "module":
            raise UserError(
                f"expected a method for section 5.2's tasks, got {shown(self.name)}, which is for "
                "tasks of any module: name another, or give --task"
            )
        return self

    def optimizer(self, problem: TaskBatch) -> torch.optim.Optimizer:
        """Return a fresh optimizer of a batch of tasks.

        Args:
            problem: the batch of tasks.
        """
        rate = math.nan if self.rate is None else self.rate
        return built(
            f"the method {shown(self.name)}",
            torch.optim.Optimizer,
            lambda: self.build(problem, rate),
        )


def stepped(tasks: TaskBatch) -> nn.Module:
    """Return what an optimizer of any module is given: the batch, or the module of a single task.

    Args:
        tasks: the batch of tasks.
    """
    return tasks.network if isinstance(tasks, SingleTask) else tasks


def _batched(kind: type[torch.optim.Optimizer], **options: Any) -> Build:
    return lambda tasks, rate: kind(tasks.parameters(), lr=rate, **options)  # type: ignore[call-arg]


def _single(kind: type[torch.optim.Optimizer], **options: Any) -> Build:
    def build(tasks: TaskBatch, rate: float) -> torch.optim.Optimizer:
        if isinstance(tasks, SingleTask):
            return kind(tasks.parameters(), lr=rate, **options)  # type: ignore[call-arg]
        return PerProblemOptimizer(
            tasks,
            lambda parameters: kind(parameters, lr=rate, **options),  # type: ignore[call-arg]
        )

    return build


def _ordinary(name: str) -> Method:
    """An optimizer of networks, for tasks of any module."""
    entry = ORDINARY[name]

    def build(tasks: TaskBatch, rate: float) -> torch.optim.Optimizer:
        if not isinstance(tasks, SingleTask):
            BASELINES[name].for_chains()
            raise TypeError(f"expected a SingleTask for {name}, got {type(tasks).__name__}")
        return entry.optimizer(tasks.network, tasks.total_steps, rate)

    return Method(name, build, entry.rate, on="module", module_rate=entry.rate)


def _muon(tasks: TaskBatch, rate: float) -> torch.optim.Optimizer:
    """Muon for the matrices of a batch; in a module, with AdamW beside it and a cosine."""
    if isinstance(tasks, SingleTask):
        return ORDINARY["muon"].optimizer(tasks.network, tasks.total_steps, rate)
    return _single(torch.optim.Muon, weight_decay=0.0)(tasks, rate)


def _from_extra(kind: str, **options: Any) -> Build:
    """Build an optimizer of the library of the extra, imported late: that takes seconds."""
    return lambda tasks, rate: _single(
        getattr(import_module("pytorch_optimizer"), kind), **options
    )(tasks, rate)


def _teleporting(base: Build, size: float) -> Build:
    return lambda tasks, rate: TeleportingOptimizer(
        base(tasks, rate),
        tasks,
        schedule=TELEPORT_STEPS,
        search=GradientAscent(initial_step=size),
    )


def kfac(damping: float = 1e-3, momentum: float = 0.9) -> Build:
    """Return what builds K-FAC by hand, whose rate is eta.

    Args:
        damping: lambda.
        momentum: mu.
    """

    def build(tasks: TaskBatch, rate: float) -> torch.optim.Optimizer:
        spec = MetaOptimizerSpec(
            update="kfac",
            element="none",
            hold=0.0,
            kfac_rate=rate,
            kfac_damping=damping,
            kfac_momentum=momentum,
        )
        return LearnedOptimizer(stepped(tasks), MetaOptimizer(spec))

    return build


TELEPORT_STEPS = (5,)

_SGD = _batched(torch.optim.SGD)
_MOMENTUM = _batched(torch.optim.SGD, momentum=0.9)
_ADAGRAD = _batched(torch.optim.Adagrad)
_RMSPROP = _batched(torch.optim.RMSprop)
_ADAM = _batched(torch.optim.Adam)

BASELINES: Registry[Method] = Registry("method", lambda entry: isinstance(entry, Method))
"""All methods that learn nothing, by name."""


def register_method(name: str, build: Build, rate: float | None = None) -> None:
    """Add a method to the table, so that ``eval_meta.py`` and the sweep of rates know it.

    Args:
        name: a new name, of letters, digits and underscores.
        build: a function from (task batch, rate) to a torch optimizer of its parameters, fresh for
            each batch.
        rate: the learning rate; None for a method that has none to choose, whose ``build`` is given
            NaN.

    Raises:
        UserError: if the name is taken, or is not a name, if the rate is not a positive number, or
            if ``build`` is no function.
    """
    if name in pretrained_names():
        raise UserError(
            f"expected a new name for a method, got {name!r}, which is a shipped optimizer: "
            "choose another"
        )
    BASELINES.add(name, Method(name, build, rate))


# Rates are the best on validation tasks of a sweep, `python -m metaopt.cli.sweep`
# (docs/results.md); gd keeps the paper's 3e-4.
BASELINES.update(
    (method.name, method)
    for method in (
        Method("gd", _SGD, 3e-4),
        Method("sgd", _SGD, 4e-4),
        Method("momentum", _MOMENTUM, 4e-5),
        Method("nesterov", _batched(torch.optim.SGD, momentum=0.9, nesterov=True), 7e-5),
        Method("adagrad", _ADAGRAD, 2.0),
        Method("rmsprop", _RMSPROP, 0.2),
        Method("adam", _ADAM, 0.7),
        Method("lbfgs", _single(torch.optim.LBFGS, max_iter=1, history_size=20), 1.0),
        Method("lbfgs_wolfe", _single(RestartingLBFGS), 3.0),
        Method("kfac", kfac(), 1.0),
        Method("muon", _muon, 0.2, module_rate=ORDINARY["muon"].rate),
        *(_ordinary(name) for name in ORDINARY if name != "muon"),
        Method("levenberg_marquardt", LevenbergMarquardt, 1e-3, on="chains"),
        Method("gd_tele", _teleporting(_SGD, 0.01), 3e-4, on="chains"),
        Method("momentum_tele", _teleporting(_MOMENTUM, 0.01), 5e-5, on="chains"),
        Method("adagrad_tele", _teleporting(_ADAGRAD, 0.01), 2.0, on="chains"),
        Method("rmsprop_tele", _teleporting(_RMSPROP, 0.01), 0.3, on="chains"),
        Method("adam_tele", _teleporting(_ADAM, 0.01), 0.7, on="chains"),
    )
)

OF_AN_EXTRA = ("shampoo", "soap")
if installed("pytorch_optimizer"):  # the extra "studies"
    register_method("shampoo", _from_extra("Shampoo"), 3.0)
    register_method("soap", _from_extra("SOAP", weight_decay=0.0), 0.3)


def known_methods() -> list[str]:
    """Return the names of all methods: baselines, then shipped learned optimizers."""
    return [*BASELINES, *pretrained_names()]


def chain_methods() -> list[str]:
    """Return the names of the methods that step section 5.2's tasks."""
    return [name for name in known_methods() if name not in BASELINES or not _of_modules(name)]


def _of_modules(name: str) -> bool:
    return BASELINES[name].on == "module"


def default_methods() -> list[str]:
    """Return the names of the methods that are evaluated by default: all learned ones and gd."""
    return [*pretrained_names(), "gd"]


def learned_method(name: str, source: str | Path) -> Method:
    """Return a method that steps with the learned optimizer of a checkpoint.

    Args:
        name: its name in the results.
        source: the path of the checkpoint, or the name of a shipped one.

    Raises:
        UserError: if the checkpoint cannot be used.
    """
    checkpoint = named_checkpoint(source)
    meta = build_meta_optimizer(checkpoint, str(source))
    return Method(
        name,
        lambda tasks, rate: LearnedOptimizer(stepped(tasks), meta),
        learned=True,
        facts=checkpoint.facts,
    )


def resolve(text: str) -> Method:
    """Return the method that a user means.

    Args:
        text: a name, ``name@rate``, or the path of a checkpoint.

    Raises:
        UserError: for an unknown name (the message lists the known ones), a rate that is not a
            positive number or that the method does not have, or a checkpoint that cannot be used.
    """
    if text.endswith(".safetensors"):
        return learned_method(text, text)
    name, at, rate_text = text.partition("@")
    if name in OF_AN_EXTRA and name not in BASELINES:
        raise UserError(
            f"expected the package pytorch_optimizer for {name}, got none: "
            f"pip install '{DISTRIBUTION}[studies]'"
        )
    if name not in known_methods():
        what, advice = "a method", "name one, a .safetensors file, or --import its module"
        raise UserError(unknown(what, name, known_methods(), advice))
    if name not in BASELINES:
        if at:
            raise UserError(
                f"expected {name!r} without a rate, as it learned its steps, got {shown(text)}: "
                "leave out the @"
            )
        return learned_method(name, name)
    if not at:
        return BASELINES[name]
    if BASELINES[name].rate is None:
        raise UserError(
            f"expected {shown(name)} without a rate, got {shown(text)}: leave out the @"
        )
    try:
        rate = float(rate_text)
    except ValueError:
        rate = math.nan
    return replace(BASELINES[name], name=text, rate=rate, module_rate=rate)


def describe(method: Method) -> dict[str, Any]:
    """Return what the manifest says about a method."""
    return {"rate": method.rate, "learned": method.learned, "checkpoint": method.facts or None}
