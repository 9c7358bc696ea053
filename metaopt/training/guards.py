"""Calls of components that a user may have written, whose mistakes become one line each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor

from metaopt.errors import UserError, shown
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.registry import built, of_library
from metaopt.tasks import TaskBatch, TaskSampler
from metaopt.training.distributions import Drawn, TaskDistribution
from metaopt.training.meta_loss import MetaLoss
from metaopt.training.spec import TrainingSpec
from metaopt.training.unroll import Window, meta_parameters


def drawn_batch(
    spec: TrainingSpec, tasks: TaskDistribution, batch_size: int, generator: torch.Generator
) -> Drawn:
    """Return the next batch of tasks to train on.

    Args:
        spec: the config of the run.
        tasks: its task distribution.
        batch_size: see :meth:`TaskDistribution.draw`.
        generator: the source of all random choices.

    Raises:
        UserError: if the distribution raises, or returns something else.
    """
    what = f"a batch of problems={shown(spec.problems)}"
    drawn = built(what, Drawn, lambda: tasks.draw(batch_size, generator))
    seeds: Any = drawn.seeds
    whole = isinstance(seeds, list | tuple) and all(type(seed) is int for seed in seeds)
    if not (seeds and whole):
        raise UserError(f"expected {what} to have a list of seeds, got {shown(seeds)}: draw some")
    _check_sampler(what, drawn.family)
    return drawn


def validation_families(
    spec: TrainingSpec, tasks: TaskDistribution, count: int
) -> list[tuple[TaskSampler, int]]:
    """Return the task families to validate on, each with a number of tasks.

    Args:
        spec: the config of the run.
        tasks: its task distribution.
        count: tasks of the first family.

    Raises:
        UserError: if the distribution raises, or returns something else.
    """
    what = f"the validation of problems={shown(spec.problems)}"
    families = built(what, list, lambda: tasks.validation(count))
    for pair in families or [None]:
        if not (isinstance(pair, tuple) and len(pair) == 2 and type(pair[1]) is int):
            raise UserError(
                f"expected {what} to be pairs of a task family and a number of tasks, got "
                f"{shown(pair)}: mend what returns it"
            )
        _check_sampler(what, pair[0])
    return families


def sampled(family: TaskSampler, seeds: Sequence[int], problems: str) -> TaskBatch:
    """Return the tasks of some seeds.

    Args:
        family: the task family.
        seeds: one a task.
        problems: the name of the distribution, for the message.

    Raises:
        UserError: if the family is a user's, and raises or returns something else.
    """
    if of_library(type(family)):
        return family.sample(seeds)
    return built(f"tasks of problems={shown(problems)}", TaskBatch, lambda: family.sample(seeds))


@final
class GuardedLoss(MetaLoss):
    """A meta-loss whose mistakes are one line each.

    Args:
        spec: which meta-loss.
    """

    def __init__(self, spec: TrainingSpec) -> None:
        self.what = f"the meta_loss {shown(spec.meta_loss)}"
        self.inner = spec.window_loss

    def __call__(self, losses: Tensor) -> Tensor:
        """Return the meta-loss of a window. See :meth:`MetaLoss.__call__`.

        Raises:
            UserError: if it raises, is no scalar, or has no gradient.
        """
        value = built(self.what, Tensor, lambda: self.inner(losses))
        if value.dim() or not value.is_floating_point():
            raise UserError(
                f"expected {self.what} to be a scalar, got {value.dtype} of shape "
                f"{tuple(value.shape)}: take a mean"
            )
        if losses.requires_grad and torch.is_grad_enabled() and not value.requires_grad:
            raise UserError(
                f"expected {self.what} to be a differentiable function of the losses, got a "
                "constant: compute it by torch's operations"
            )
        return value


def windows(
    spec: TrainingSpec,
    tasks: TaskBatch,
    optimizer: LearnedOptimizer,
    generator: torch.Generator,
) -> Iterator[Window]:
    """Return the windows of a trajectory, by the estimator of a config.

    Args:
        spec: the estimator, the meta-loss, the steps and the window.
        tasks: the batch of tasks.
        optimizer: a fresh optimizer of the batch.
        generator: the source of all random choices.

    Raises:
        UserError: if the meta-loss or a user's estimator makes a mistake; while windows are taken.
    """
    estimator, loss = spec.gradient_estimator, GuardedLoss(spec)

    def made() -> Iterator[Window]:
        return estimator.windows(tasks, optimizer, spec.steps, spec.window, loss, generator)

    if of_library(type(estimator)):
        return made()
    return _checked(
        built(f"the windows of the estimator {shown(spec.estimator)}", Iterator, made),  # type: ignore[type-abstract]
        spec,
        [tuple(parameter.shape) for parameter in meta_parameters(optimizer)],
    )


def _checked(
    made: Iterator[Window], spec: TrainingSpec, shapes: Sequence[tuple[int, ...]]
) -> Iterator[Window]:
    what = f"a window of the estimator {shown(spec.estimator)}"
    for _ in range(0, spec.steps, spec.window):
        one = built(what, Window, lambda: next(made, None))
        got = [_shape(one.meta_loss), _shape(one.rejected), _shape(one.losses)]
        if got[:2] != [(), ()] or len(got[2] or ()) != 2 or 0 in (got[2] or ()):
            raise UserError(
                f"expected {what} with scalars meta_loss and rejected, and losses (K, B), got the "
                f"shapes {got[0]}, {got[1]} and {got[2]}: mend it"
            )
        gradients = one.gradients if isinstance(one.gradients, list) else []
        if [_shape(gradient) for gradient in gradients] != shapes:
            raise UserError(
                f"expected {what} with a list of gradients of the shapes of the {len(shapes)} "
                f"trained meta-parameters, got {shown(one.gradients)}: give one for each, in order"
            )
        yield one


def _shape(value: object) -> tuple[int, ...] | None:
    """The shape of a tensor; None of anything else."""
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _check_sampler(what: str, family: object) -> None:
    if not callable(getattr(family, "sample", None)):
        raise UserError(
            f"expected {what} to have a task family, got {shown(family)}: give one that "
            "has sample(seeds)"
        )
